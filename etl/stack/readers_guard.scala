// Limits of the readers server that no session can lift: how long a job runs, and how many bytes a task's rows have.
// Spark's own do not hold there: rows are fetched part by part (spark.sql.thriftServer.incrementalCollect), and what runs while they are
// fetched is outside of spark.sql.thriftServer.queryTimeout; a task holds all of its rows before spark.driver.maxResultSize looks at them.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import java.util.concurrent.{ConcurrentHashMap, Executors, ScheduledFuture, ThreadFactory, TimeUnit}

import org.apache.spark.{SparkConf, SparkContext}
import org.apache.spark.rdd.RDD
import org.apache.spark.scheduler.{SparkListener, SparkListenerJobEnd, SparkListenerJobStart}
import org.apache.spark.sql.SparkSessionExtensions
import org.apache.spark.sql.catalyst.InternalRow
import org.apache.spark.sql.catalyst.expressions.{Attribute, SortOrder, UnsafeRow}
import org.apache.spark.sql.catalyst.plans.physical.Partitioning
import org.apache.spark.sql.catalyst.rules.Rule
import org.apache.spark.sql.execution.{ColumnarRule, CommandResultExec, LocalTableScanExec, SparkPlan, UnaryExecNode}
import org.apache.spark.sql.execution.adaptive.BroadcastQueryStageExec
import org.apache.spark.sql.execution.command.ExecutedCommandExec
import org.apache.spark.sql.execution.datasources.v2.V2CommandExec
import org.apache.spark.sql.execution.exchange.Exchange

/** Ends each job that runs longer than `spark.warehouse.readers.seconds`; 0: never. */
class TimeLimit(conf: SparkConf) extends SparkListener {
  private val seconds = conf.getLong("spark.warehouse.readers.seconds", 0)
  private val clock = Executors.newSingleThreadScheduledExecutor(new ThreadFactory {
    override def newThread(work: Runnable): Thread = {
      val thread = new Thread(work, "readers-time-limit")
      thread.setDaemon(true)
      thread
    }
  })
  private val running = new ConcurrentHashMap[Int, ScheduledFuture[_]]()

  override def onJobStart(job: SparkListenerJobStart): Unit = if (seconds > 0) {
    val end = clock.schedule(
      new Runnable {
        override def run(): Unit = SparkContext.getActive.foreach(
          _.cancelJob(job.jobId, s"because it ran longer than $seconds s (readers_query_seconds); ask for less: fewer days, a join condition"))
      },
      seconds,
      TimeUnit.SECONDS)
    running.put(job.jobId, end)
  }

  override def onJobEnd(job: SparkListenerJobEnd): Unit = Option(running.remove(job.jobId)).foreach(_.cancel(false))
}

/** Puts a limit on the rows of every statement, `spark.warehouse.readers.bytes` for each task. */
class ResultLimit extends (SparkSessionExtensions => Unit) {
  override def apply(extensions: SparkSessionExtensions): Unit = extensions.injectColumnar { session =>
    val bytes = session.sparkContext.getConf.getLong("spark.warehouse.readers.bytes", Long.MaxValue)
    new ColumnarRule {
      override def postColumnarTransitions: Rule[SparkPlan] = new Rule[SparkPlan] {
        override def apply(plan: SparkPlan): SparkPlan = plan match {
          // What goes to other tasks may spill, and what the driver has is there already; a broadcast must stay the root of its plan.
          case _: Exchange | _: BroadcastQueryStageExec | _: CommandResultExec | _: LocalTableScanExec | _: ExecutedCommandExec | _: V2CommandExec | _: BoundedExec => plan
          case _ if plan.supportsColumnar && !plan.supportsRowBased => plan
          case _ => BoundedExec(bytes, plan)
        }
      }
    }
  }
}

case class BoundedExec(bytes: Long, child: SparkPlan) extends UnaryExecNode {
  override def output: Seq[Attribute] = child.output
  override def outputPartitioning: Partitioning = child.outputPartitioning
  override def outputOrdering: Seq[SortOrder] = child.outputOrdering
  override protected def withNewChildInternal(changed: SparkPlan): BoundedExec = copy(child = changed)

  override protected def doExecute(): RDD[InternalRow] = {
    val limit = bytes
    child.execute().mapPartitionsInternal { rows =>
      var seen = 0L
      rows.map { row =>
        row match {
          case known: UnsafeRow => seen += known.getSizeInBytes
          case _ =>
        }
        if (seen > limit) {
          throw new IllegalStateException(
            s"the answer is larger than ${limit >> 20} MB a task (readers_result_mb); ask for less: fewer columns or days, an aggregate, LIMIT")
        }
        row
      }
    }
  }
}
