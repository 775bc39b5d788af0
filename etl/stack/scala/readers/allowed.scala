// What a statement on the readers server may contain. Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import org.apache.spark.sql.SparkSessionExtensions
import org.apache.spark.sql.catalyst.expressions.CallMethodViaReflection
import org.apache.spark.sql.catalyst.plans.logical.{CacheTable, CacheTableAsSelect}

/** Refuses what reaches beyond the statement: Java's methods, and what stays in the memory that all sessions share. */
class Refusals extends (SparkSessionExtensions => Unit) {
  override def apply(extensions: SparkSessionExtensions): Unit = extensions.injectCheckRule { _ => plan =>
    plan.foreach {
      case _: CacheTable | _: CacheTableAsSelect => refuse("CACHE TABLE", "it takes the memory of all; use a sandbox table")
      case one => one.expressions.foreach(_.foreach {
        case _: CallMethodViaReflection => refuse("java_method and reflect", "they reach Java")
        case _ =>
      })
    }
  }

  private def refuse(what: String, why: String): Nothing = throw new UnsupportedOperationException(s"the readers server takes no $what: $why")
}
