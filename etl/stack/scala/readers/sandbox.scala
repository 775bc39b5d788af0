// The catalog of the tables that analysts make: the one place where the readers server writes. Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import scala.collection.mutable
import scala.jdk.CollectionConverters._

import org.apache.iceberg.io.{SupportsBulkOperations, SupportsPrefixOperations}
import org.apache.iceberg.spark.SparkCatalog
import org.apache.iceberg.spark.source.StagedSparkTable
import org.apache.spark.sql.connector.catalog.{Column, Identifier, StagedTable, SupportsWrite, TableCapability, TableInfo}
import org.apache.spark.sql.connector.expressions.Transform
import org.apache.spark.sql.connector.write.{LogicalWriteInfo, WriteBuilder}
import org.apache.spark.sql.types.StructType

/** The catalog of the tables that analysts make. One that a statement gives up (no room, no time) leaves none of its files, which would take room. */
class Sandbox extends SparkCatalog {
  override def stageCreate(name: Identifier, info: TableInfo): StagedTable = cleared(super.stageCreate(name, info))
  override def stageReplace(name: Identifier, info: TableInfo): StagedTable = cleared(super.stageReplace(name, info))
  override def stageCreateOrReplace(name: Identifier, info: TableInfo): StagedTable = cleared(super.stageCreateOrReplace(name, info))

  private def cleared(staged: StagedTable): StagedTable = staged match {
    case made: StagedSparkTable => new ClearedTable(made)
    case other => other
  }
}

/** A table that is being made: Iceberg (1.12) does nothing where it is given up. */
class ClearedTable(made: StagedSparkTable) extends StagedTable with SupportsWrite {
  private val queries = mutable.Set[String]()

  override def name: String = made.name
  override def schema: StructType = made.schema
  override def columns: Array[Column] = made.columns
  override def partitioning: Array[Transform] = made.partitioning
  override def properties: java.util.Map[String, String] = made.properties
  override def capabilities: java.util.Set[TableCapability] = made.capabilities
  override def commitStagedChanges(): Unit = made.commitStagedChanges()

  override def newWriteBuilder(info: LogicalWriteInfo): WriteBuilder = {
    queries += info.queryId
    made.newWriteBuilder(info)
  }

  override def abortStagedChanges(): Unit = {
    made.abortStagedChanges()
    // By their names only its own: somebody else may have made the table meanwhile.
    made.table.io match {
      case files: SupportsPrefixOperations with SupportsBulkOperations =>
        val own = files.listPrefix(made.table.location).asScala.map(_.location).filter(path => queries.exists(path.contains(_))).toList
        files.deleteFiles(own.asJava)
      case _ =>
    }
  }
}
