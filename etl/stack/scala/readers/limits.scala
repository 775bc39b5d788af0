// Limits of the readers server that no session can lift: how many bytes a task's rows have, and how many of them a join without a condition of
// equality holds. Spark's own limit does not apply there: a task holds all of its rows before spark.driver.maxResultSize looks at them.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import org.apache.spark.rdd.RDD
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
