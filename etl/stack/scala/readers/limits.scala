// Limits of the readers server that no session can lift: how long a statement runs, how many bytes a task's rows have, and how many of them
// a join without a condition of equality holds.
// Spark's own limits do not apply there: rows are fetched part by part (spark.sql.thriftServer.incrementalCollect), and what runs while they
// are fetched is outside of spark.sql.thriftServer.queryTimeout; a task holds all of its rows before spark.driver.maxResultSize looks at them.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import java.util.concurrent.{Executors, ScheduledFuture, ThreadFactory, TimeUnit}

import scala.collection.mutable

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
import org.apache.spark.sql.execution.joins.CartesianProductExec

/** Ends each statement whose jobs run longer than `spark.warehouse.readers.seconds` in all; 0: never. */
class TimeLimit(conf: SparkConf) extends SparkListener {
  private val limit = TimeUnit.SECONDS.toMillis(conf.getLong("spark.warehouse.readers.seconds", 0))
  private val clock = Executors.newSingleThreadScheduledExecutor(new ThreadFactory {
    override def newThread(work: Runnable): Thread = {
      val thread = new Thread(work, "readers-time-limit")
      thread.setDaemon(true)
      thread
    }
  })

  private class Statement {
    var used, since = 0L
    var end: ScheduledFuture[_] = _
    val jobs = mutable.Set[Int]()
  }

  // Whoever fetches an answer part by part starts a job for each; when the last was, nobody tells.
  private val statements = mutable.LinkedHashMap[String, Statement]()
  private val running = mutable.Map[Int, Statement]()

  private def now: Long = TimeUnit.NANOSECONDS.toMillis(System.nanoTime())

  override def onJobStart(job: SparkListenerJobStart): Unit = if (limit > 0) synchronized {
    val group = Option(job.properties).flatMap(known => Option(known.getProperty("spark.jobGroup.id"))).getOrElse(s"job ${job.jobId}")
    val statement = statements.getOrElseUpdate(group, new Statement)
    if (statement.jobs.isEmpty) {
      statement.since = now
      statement.end = clock.schedule(new Runnable { override def run(): Unit = end(statement) }, limit - statement.used, TimeUnit.MILLISECONDS)
    }
    statement.jobs += job.jobId
    running(job.jobId) = statement
    if (statements.size > TimeLimit.known) {
      statements --= statements.iterator.collect { case (name, one) if one.jobs.isEmpty => name }.take(statements.size - TimeLimit.known).toList
    }
  }

  override def onJobEnd(job: SparkListenerJobEnd): Unit = synchronized {
    running.remove(job.jobId).foreach { statement =>
      statement.jobs -= job.jobId
      if (statement.jobs.isEmpty) {
        statement.used += now - statement.since
        statement.end.cancel(false)
      }
    }
  }

  private def end(statement: Statement): Unit = synchronized {
    val reason = s"because it ran longer than ${limit / 1000} s (readers_query_seconds); ask for less: fewer days, a join condition"
    for (context <- SparkContext.getActive; job <- statement.jobs) context.cancelJob(job, reason)
  }
}

object TimeLimit {
  /** Statements whose time is remembered. */
  val known = 1000
}

/** Puts a limit on the rows of every statement, `spark.warehouse.readers.bytes` for each task, and on those of a join of all with all. */
class ResultLimit extends (SparkSessionExtensions => Unit) {
  override def apply(extensions: SparkSessionExtensions): Unit = extensions.injectColumnar { session =>
    val bytes = session.sparkContext.getConf.getLong("spark.warehouse.readers.bytes", Long.MaxValue)
    new ColumnarRule {
      override def postColumnarTransitions: Rule[SparkPlan] = new Rule[SparkPlan] {
        override def apply(plan: SparkPlan): SparkPlan = answer(plan.transformUp {
          // Held in memory for each row of the other side. Where memory is short they would go to disk, and each reading of them there,
          // one a row, keeps a megabyte until the task ends (UnsafeSorterSpillReader in Spark 4.1).
          case product @ CartesianProductExec(_, right, _) if !right.isInstanceOf[BoundedExec] =>
            product.copy(right = BoundedExec(ResultLimit.productBytes, "a join of all rows with all rows holds more than", "; give it a condition of equality", right))
        })

        private def answer(plan: SparkPlan): SparkPlan = plan match {
          // What goes to other tasks may spill, and what the driver has is there already; a broadcast must stay the root of its plan.
          case _: Exchange | _: BroadcastQueryStageExec | _: CommandResultExec | _: LocalTableScanExec | _: ExecutedCommandExec | _: V2CommandExec | _: BoundedExec => plan
          case _ if plan.supportsColumnar && !plan.supportsRowBased => plan
          case _ => BoundedExec(bytes, "the answer is larger than", " (readers_result_mb); ask for less: fewer columns or days, an aggregate, LIMIT", plan)
        }
      }
    }
  }
}

object ResultLimit {
  /** Bytes of rows, which take some five times as much memory while they are held; a task has at least 50 MB of it. */
  val productBytes: Long = 8L << 20
}

case class BoundedExec(bytes: Long, problem: String, advice: String, child: SparkPlan) extends UnaryExecNode {
  override def output: Seq[Attribute] = child.output
  override def outputPartitioning: Partitioning = child.outputPartitioning
  override def outputOrdering: Seq[SortOrder] = child.outputOrdering
  override protected def withNewChildInternal(changed: SparkPlan): BoundedExec = copy(child = changed)

  override protected def doExecute(): RDD[InternalRow] = {
    val (limit, sentence) = (bytes, s"$problem ${bytes >> 20} MB a task$advice")
    child.execute().mapPartitionsInternal { rows =>
      var seen = 0L
      rows.map { row =>
        row match {
          case known: UnsafeRow => seen += known.getSizeInBytes
          case _ =>
        }
        if (seen > limit) {
          throw new IllegalStateException(sentence)
        }
        row
      }
    }
  }
}
