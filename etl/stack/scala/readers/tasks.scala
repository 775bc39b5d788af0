// The tasks of the readers server as Spark's scheduler has them: whose they are, and who waits for a turn. Compiled by etl/stack/jars.py.
package org.apache.spark.scheduler

import scala.jdk.CollectionConverters._

import org.apache.spark.SparkContext

case class RunningTask(id: Long, pool: String, tags: Set[String], since: Long)

/** The scheduler's own books, not those of a listener: events may be lost when there are many. */
class Tasks(context: SparkContext) {
  private val scheduler = context.taskScheduler.asInstanceOf[TaskSchedulerImpl]
  val slots: Int = context.defaultParallelism

  private def property(tasks: TaskSetManager, name: String): String =
    Option(tasks.taskSet.properties).map(_.getProperty(name, "")).getOrElse("")

  private def pool(tasks: TaskSetManager): String = property(tasks, SparkContext.SPARK_SCHEDULER_POOL)

  /** Return the tasks that hold a slot, those of ended statements too: they leave the books when their thread has ended. */
  def running(): Seq[RunningTask] = scheduler.synchronized {
    scheduler.taskIdToTaskSetManager.asScala.toSeq.flatMap { case (id, tasks) =>
      val tags = property(tasks, SparkContext.SPARK_JOB_TAGS).split(SparkContext.SPARK_JOB_TAGS_SEP).toSet
      tasks.taskInfos.get(id).map(info => RunningTask(id, pool(tasks), tags, info.launchTime))
    }
  }

  /** Return the pools that have tasks to run, of which none runs. */
  def waiting(): Set[String] = scheduler.synchronized {
    val live = scheduler.rootPool.getSortedTaskSetQueue.filter(tasks => !tasks.isZombie && tasks.tasksSuccessful < tasks.numTasks)
    live.groupBy(pool).collect { case (name, all) if all.forall(_.runningTasks == 0) => name }.toSet
  }
}
