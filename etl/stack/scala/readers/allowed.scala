// What a statement on the readers server may contain. It is an allow-list of the classes of a parsed statement, of functions, settings and
// relations: what is not listed is refused, whatever it does, and so is what a later Spark adds.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import java.util.Locale

import scala.collection.mutable
import scala.jdk.CollectionConverters._

import org.apache.iceberg.{BaseMetadataTable, FilesTable, HistoryTable, PartitionsTable, RefsTable, SnapshotsTable}
import org.apache.iceberg.spark.source.SparkTable
import org.apache.spark.sql.{SparkSession, SparkSessionExtensions}
import org.apache.spark.sql.catalyst.{FunctionIdentifier, TableIdentifier}
import org.apache.spark.sql.catalyst.analysis._
import org.apache.spark.sql.catalyst.catalog.HiveTableRelation
import org.apache.spark.sql.catalyst.expressions._
import org.apache.spark.sql.catalyst.expressions.aggregate.{AggregateExpression, AnyValue, First, Last}
import org.apache.spark.sql.catalyst.parser.{ParameterContext, ParserInterface}
import org.apache.spark.sql.catalyst.plans.logical._
import org.apache.spark.sql.catalyst.trees.TreeNode
import org.apache.spark.sql.classic
import org.apache.spark.sql.catalyst.plans.logical.views.ShowIcebergViews
import org.apache.spark.sql.connector.catalog.{CatalogPlugin, Identifier}
import org.apache.spark.sql.connector.write.RowLevelOperationTable
import org.apache.spark.sql.execution.command._
import org.apache.spark.sql.execution.datasources.{HadoopFsRelation, LogicalRelation}
import org.apache.spark.sql.execution.datasources.v2.DataSourceV2Relation
import org.apache.spark.sql.internal.SQLConf
import org.apache.spark.sql.types.{DataType, StructType}
import org.apache.spark.unsafe.types.UTF8String

/** Checks each statement twice: as parsed, before anything of it is looked up or loaded, and as analysed, when every relation is known. */
class Allowed extends (SparkSessionExtensions => Unit) {
  override def apply(extensions: SparkSessionExtensions): Unit = {
    // The last parser that is injected is the outermost, so this extension stands last in spark.sql.extensions.
    extensions.injectParser((session, parser) => new AllowedParser(session, parser))
    extensions.injectCheckRule(session => new AllowedRelations(session))
  }
}

object Allowed {
  val sandbox = "sandbox"

  /** Settings that a session may change; every other one has the value that the server gave it. */
  val settings = Set("spark.sql.session.timeZone", "spark.sql.ansi.enabled")

  def refuse(what: String): Nothing =
    throw new UnsupportedOperationException(s"$what is refused: this server only reads, and writes only tables of the catalog $sandbox")

  /** Refuse a name of which a part could be a path. */
  def names(parts: Seq[String]): Unit =
    for (part <- parts if !part.matches("[\\p{L}\\p{M}\\p{N}_ $-]+")) refuse(s"the name `$part`")

  /** Return the words of a class of statements, as `CREATE FUNCTION` for `CreateFunctionCommand`. */
  def words(node: Any): String = {
    val name = node.getClass.getSimpleName.stripSuffix("$").stripPrefix("Unresolved").stripSuffix("Command").stripSuffix("Statement")
    name.split("(?<=[a-z0-9])(?=[A-Z])").mkString(" ").toUpperCase
  }
}

/** Refuses statements by their parsed form, and gives the session's settings the values of its start. */
class AllowedParser(session: SparkSession, parser: ParserInterface) extends ParserInterface {
  private def checked[Parsed](parse: => Parsed): Parsed = {
    restoreSettings()
    val parsed = parse
    AllowedParser.check(parsed)
    parsed
  }

  override def parsePlan(text: String): LogicalPlan = checked(parser.parsePlan(text))
  override def parsePlanWithParameters(text: String, parameters: ParameterContext): LogicalPlan =
    checked(parser.parsePlanWithParameters(text, parameters))
  override def parseQuery(text: String): LogicalPlan = checked(parser.parseQuery(text))
  override def parseExpression(text: String): Expression = checked(parser.parseExpression(text))
  override def parseTableIdentifier(text: String): TableIdentifier = parser.parseTableIdentifier(text)
  override def parseFunctionIdentifier(text: String): FunctionIdentifier = parser.parseFunctionIdentifier(text)
  override def parseMultipartIdentifier(text: String): Seq[String] = parser.parseMultipartIdentifier(text)
  override def parseRoutineParam(text: String): StructType = parser.parseRoutineParam(text)
  override def parseTableSchema(text: String): StructType = parser.parseTableSchema(text)
  override def parseDataType(text: String): DataType = parser.parseDataType(text)

  // SET of any other setting is refused; should another way to one exist, it does not last.
  private lazy val start: Map[String, String] = conf.getAllConfs
  private def conf: SQLConf = session.asInstanceOf[classic.SparkSession].sessionState.conf

  private def restoreSettings(): Unit = {
    val now = conf.getAllConfs
    for (name <- now.keySet ++ start.keySet if !Allowed.settings(name) && now.get(name) != start.get(name)) {
      start.get(name) match {
        case Some(value) => conf.setConfString(name, value)
        case None => conf.unsetConf(name)
      }
    }
  }
}

object AllowedParser {
  private val queries: Set[Class[_]] = Set(
    classOf[Aggregate], classOf[Distinct], classOf[Except], classOf[Filter], classOf[Generate], classOf[GlobalLimit], classOf[Intersect],
    classOf[Join], classOf[LateralJoin], classOf[LimitAll], classOf[LocalLimit], classOf[LocalRelation], classOf[Offset],
    classOf[PipeOperator], classOf[Pivot], classOf[Project], classOf[RelationTimeTravel], classOf[RepartitionByExpression],
    classOf[ResolvedInlineTable], classOf[Sample], classOf[Sort], classOf[SubqueryAlias], classOf[Union], classOf[UnresolvedHaving],
    classOf[UnresolvedInlineTable], classOf[UnresolvedRelation], classOf[UnresolvedSubqueryColumnAliases], classOf[UnresolvedTVFAliases],
    classOf[UnresolvedTableValuedFunction], classOf[UnresolvedWith], classOf[Unpivot], classOf[WithWindowDefinition], OneRowRelation().getClass)

  private val questions: Set[Class[_]] = Set(
    classOf[DescribeColumn], classOf[DescribeFunction], classOf[DescribeNamespace], classOf[DescribeQueryCommand], classOf[DescribeRelation],
    classOf[DescribeRelationJsonCommand], classOf[ExplainCommand], classOf[ResetCommand], classOf[SetCatalogAndNamespace],
    classOf[SetCatalogCommand], classOf[SetCommand], classOf[SetNamespaceCommand], classOf[ShowCatalogsCommand], classOf[ShowColumns],
    classOf[ShowCreateTable], ShowCurrentNamespaceCommand().getClass, classOf[ShowFunctions], classOf[ShowIcebergViews],
    classOf[ShowNamespacesCommand],
    classOf[ShowPartitions], classOf[ShowTablePartition], classOf[ShowTableProperties], classOf[ShowTables], classOf[ShowTablesExtended],
    classOf[ShowViews], classOf[UnresolvedFunctionName], classOf[UnresolvedIdentifier], classOf[UnresolvedNamespace],
    CurrentNamespace.getClass, classOf[ResolvedNamespace], classOf[UnresolvedTable], classOf[UnresolvedTableOrView], classOf[UnresolvedView])

  /** Their target is looked at when it is known (`AllowedRelations`). */
  private val writes: Set[Class[_]] = Set(
    classOf[AddColumns], classOf[AlterColumns], classOf[CreateNamespace], classOf[CreateTable], classOf[CreateTableAsSelect],
    classOf[CreateViewCommand], classOf[DeleteFromTable], classOf[DropColumns], classOf[DropNamespace], classOf[DropTable],
    classOf[DropView], classOf[InsertIntoStatement], classOf[MergeIntoTable], classOf[OverwriteByExpression], classOf[RenameColumn],
    classOf[ReplaceColumns], classOf[ReplaceTable], classOf[ReplaceTableAsSelect], classOf[TruncateTable], classOf[UpdateTable])

  private val expressions: Set[Class[_]] = Set(
    classOf[Add], classOf[AggregateExpression], classOf[Alias], classOf[And], classOf[AnyValue], classOf[AttributeReference], classOf[BitwiseAnd], classOf[BitwiseNot],
    classOf[BitwiseOr], classOf[BitwiseXor], classOf[CaseWhen], classOf[Cast], classOf[Coalesce], classOf[Collate], classOf[Concat],
    classOf[CreateNamedStruct], classOf[Cube], classOf[CurrentDate], CurrentRow.getClass, classOf[CurrentTime], classOf[CurrentTimestamp],
    classOf[CurrentUser], classOf[Divide], classOf[EqualNullSafe], classOf[EqualTo], classOf[Exists], classOf[First],
    classOf[GreaterThan], classOf[GreaterThanOrEqual], classOf[GroupingSets], classOf[ILike], classOf[In], classOf[InSubquery],
    classOf[IntegralDivide], classOf[IsNotNull], classOf[IsNull], classOf[LambdaFunction], classOf[Last], classOf[LateralSubquery],
    classOf[LessThan], classOf[LessThanOrEqual], classOf[Like], classOf[LikeAll], classOf[LikeAny], classOf[ListQuery], classOf[Literal],
    classOf[Lower], classOf[MultiAlias], classOf[Multiply], classOf[NamedArgumentExpression], NamePlaceholder.getClass, classOf[Not], classOf[NotLikeAll],
    classOf[NotLikeAny], classOf[NotWhilePlanning], classOf[Or], classOf[Overlay], classOf[PipeExpression], classOf[RLike], classOf[Remainder], classOf[Rollup],
    classOf[ScalarSubquery], classOf[SemiStructuredExtract], classOf[ShiftLeft], classOf[ShiftRight], classOf[ShiftRightUnsigned],
    classOf[SortOrder], classOf[SpecifiedWindowFrame], classOf[StringLocate], classOf[StringTrim], classOf[StringTrimLeft],
    classOf[StringTrimRight], classOf[Substring], classOf[Subtract], classOf[TimestampAdd], classOf[TimestampDiff], classOf[UnaryMinus],
    classOf[UnaryPositive], UnboundedFollowing.getClass, UnboundedPreceding.getClass, classOf[UnresolvedAlias], classOf[UnresolvedAttribute],
    classOf[UnresolvedCollation], classOf[UnresolvedExtractValue], classOf[UnresolvedFieldName], classOf[UnresolvedFieldPosition],
    classOf[UnresolvedFunction], classOf[UnresolvedGenerator], classOf[UnresolvedNamedLambdaVariable], classOf[UnresolvedOrdinal],
    classOf[UnresolvedPartitionSpec], classOf[UnresolvedPipeAggregateOrdinal], classOf[org.apache.spark.sql.catalyst.analysis.UnresolvedRegex],
    classOf[UnresolvedStar], classOf[UnresolvedStarExceptOrReplace], classOf[UnresolvedWindowExpression], UnspecifiedFrame.getClass,
    classOf[WindowExpression], classOf[WindowSpecDefinition],
    // Of tables in the sandbox.
    classOf[AlterColumnSpec], classOf[Assignment], classOf[ColumnDefinition], classOf[DeleteAction], classOf[InsertAction],
    classOf[InsertStarAction], classOf[OptionList], classOf[QualifiedColType], classOf[UnresolvedTableSpec], classOf[UpdateAction],
    classOf[UpdateStarAction])

  private val listed: Set[Class[_]] = queries ++ questions ++ writes ++ expressions

  /** How Iceberg changes rows; other properties name places and classes. */
  private val tableProperties = Set("format-version", "write.delete.mode", "write.merge.mode", "write.update.mode")

  /** Refuse a parsed statement or expression that holds anything which is not listed, however deep. */
  def check(parsed: Any): Unit = {
    val waiting = mutable.Stack[Any](parsed)
    while (waiting.nonEmpty) {
      waiting.pop() match {
        case node: TreeNode[_] =>
          if (!listed(node.getClass)) {
            Allowed.refuse(Allowed.words(node))
          }
          if (questions(node.getClass)) node.productElementNames.zip(node.productIterator).foreach {
            case ("pattern", Some(text: String)) => Bounds.pattern(text)
            case ("pattern", text: String) => Bounds.pattern(text)
            case _ =>
          }
          checkOne(node)
          node match {
            case _: Literal | _: LocalRelation =>
            // Its other part is a function of Spark's own that makes a name.
            case alias: UnresolvedAlias => waiting.push(alias.child)
            // Whatever holds a node, such as a subquery, an explained statement or a default, has it among its parts.
            case holder: Product => waiting.pushAll(holder.productIterator)
            case other => waiting.pushAll(other.children)
          }
        case _: DataType =>
        case many: Iterable[_] => waiting.pushAll(many)
        case other: Product => waiting.pushAll(other.productIterator)
        case _ =>
      }
    }
  }

  private def checkOne(node: TreeNode[_]): Unit = node match {
    case relation: UnresolvedRelation =>
      Allowed.names(relation.multipartIdentifier)
      if (relation.isStreaming) Allowed.refuse("STREAM")
      for (option <- relation.options.keySet.asScala if option != UnresolvedRelation.REQUIRED_WRITE_PRIVILEGES) {
        Allowed.refuse(s"the option $option of a relation")
      }
    case name: UnresolvedIdentifier => Allowed.names(name.nameParts)
    case name: UnresolvedTable => Allowed.names(name.multipartIdentifier)
    case name: UnresolvedTableOrView => Allowed.names(name.multipartIdentifier)
    case name: UnresolvedView => Allowed.names(name.multipartIdentifier)
    case name: UnresolvedNamespace => Allowed.names(name.multipartIdentifier)
    case use: SetNamespaceCommand => Allowed.names(use.namespace)
    case use: SetCatalogCommand => Allowed.names(Seq(use.catalogName))
    case space: ResolvedNamespace => Allowed.names(space.namespace)
    case travel: RelationTimeTravel => travel.timestamp.foreach(_.foreach {
      // Spark works it out before the plan is checked, and looks at no interrupt meanwhile.
      case _: Literal | _: Cast | _: CurrentDate | _: CurrentTimestamp | _: Add | _: Subtract | _: UnaryMinus =>
      case function: UnresolvedFunction if moments(function.nameParts.mkString(".").toLowerCase) =>
      case other => Allowed.refuse(s"${Allowed.words(other)} in TIMESTAMP AS OF")
    })
    case function: UnresolvedFunction => called(function.nameParts, function.arguments)
    case function: UnresolvedTableValuedFunction => called(function.name, function.functionArgs)
    case function: UnresolvedGenerator => called(function.name.nameParts, function.children)
    case SetCommand(Some((name, Some(_)))) if !Allowed.settings(name) => Allowed.refuse(s"SET $name")
    case ResetCommand(name) if !name.exists(Allowed.settings) => Allowed.refuse(s"RESET ${name.getOrElse("of all settings")}")
    case view: CreateViewCommand =>
      if (view.viewType != LocalTempView) Allowed.refuse("a view that other sessions see")
      view.properties.keys.foreach(name => Allowed.refuse(s"the property $name of a view"))
    case table: UnresolvedTableSpec =>
      for (provider <- table.provider if !provider.equalsIgnoreCase("iceberg")) Allowed.refuse(s"USING $provider")
      if (table.location.nonEmpty) Allowed.refuse("LOCATION")
      if (table.serde.nonEmpty) Allowed.refuse("ROW FORMAT and STORED AS")
      if (table.external) Allowed.refuse("EXTERNAL")
      if (table.constraints.nonEmpty) Allowed.refuse("CONSTRAINT")
      for ((name, _) <- table.optionExpression.options) Allowed.refuse(s"the option $name of a table")
      for (name <- table.properties.keys if !tableProperties(name)) Allowed.refuse(s"the property $name of a table")
    case column: ColumnDefinition =>
      if (column.defaultValue.nonEmpty) Allowed.refuse("DEFAULT")
      if (column.generationExpression.nonEmpty || column.identityColumnSpec.nonEmpty) Allowed.refuse("GENERATED ALWAYS AS")
    case space: CreateNamespace => space.properties.keys.foreach(name => Allowed.refuse(s"the property $name of a namespace"))
    case _ =>
  }

  private def called(name: Seq[String], arguments: Seq[Expression]): Unit = {
    val function = name.mkString(".").toLowerCase
    if (!Functions.listed(function)) Allowed.refuse(s"the function $function")
    // The plan itself grows with these arguments: a column for some counters, a copy of each row for a window, code for a row of the answer.
    (function, arguments) match {
      case ("approx_count_distinct", Seq(_, _, _*)) => Allowed.refuse("the second argument of approx_count_distinct")
      case ("window", Seq(_, _, _, _*)) => Allowed.refuse("the third argument of window")
      case ("from_json" | "from_csv", Seq(_, schema, _*)) => this.schema(function, schema)
      case ("schema_of_json" | "schema_of_csv", Seq(example, _*)) => this.schema(function, example)
      case ("variant_get" | "try_variant_get", Seq(_, _, kind)) => this.schema(function, kind)
      case ("stack", Seq(rows, _*)) if !AllowedParser.isSmall(rows) => Allowed.refuse(s"stack of more than ${AllowedParser.mostRows} rows")
      case _ =>
    }
  }

  /** Spark parses a schema while it analyses, and looks at no interrupt meanwhile. */
  private def schema(function: String, text: Expression): Unit = text match {
    case Literal(null, _) =>
    case Literal(text: UTF8String, _) => Bounds.checkSchema(text.toString)
    // What it is given is looked at for itself.
    case UnresolvedFunction(Seq(name), _, _, _, _, _, _) if name.toLowerCase.startsWith("schema_of_") =>
    case _ => Allowed.refuse(s"a schema of $function that is not written as a text")
  }

  /** Functions of a moment, for TIMESTAMP AS OF. */
  private val moments = Set("now", "current_timestamp", "current_date", "to_timestamp", "to_date", "date", "timestamp", "timestamp_seconds",
    "timestamp_millis", "date_sub", "date_add", "date_trunc")

  private val mostRows = 1000

  private def isSmall(rows: Expression): Boolean = rows match {
    case Literal(number: Int, _) => number <= mostRows
    case _ => false
  }
}

/** Refuses a statement by its analysed form: each relation is one of ours, and each write goes to the sandbox. */
class AllowedRelations(session: SparkSession) extends (LogicalPlan => Unit) {
  private val conf = session.sparkContext.getConf
  private val databases = conf.get("spark.warehouse.readers.databases").split(",").toSet
  private val closed = conf.get("spark.warehouse.readers.closed").split(",").toSet
  private val catalogs = Set("spark_catalog", Allowed.sandbox)

  override def apply(plan: LogicalPlan): Unit = {
    val waiting = mutable.Stack[LogicalPlan](plan)
    while (waiting.nonEmpty) {
      val node = waiting.pop()
      check(node)
      waiting.pushAll(node.children)
      waiting.pushAll(node.innerChildren.collect { case inner: LogicalPlan => inner })
      for (expression <- node.expressions; part <- expression) {
        part match {
          case subquery: PlanExpression[_] => subquery.plan match {
            case inner: LogicalPlan => waiting.push(inner)
            case other => Allowed.refuse(Allowed.words(other))
          }
          case _ =>
        }
      }
    }
  }

  private def check(node: LogicalPlan): Unit = node match {
    case relation: DataSourceV2Relation =>
      if (relation.options.keySet.asScala.exists(_ != UnresolvedRelation.REQUIRED_WRITE_PRIVILEGES)) Allowed.refuse("an option of a relation")
      relation.table match {
        case table: SparkTable => checkIceberg(table)
        // What UPDATE, DELETE and MERGE read the rows of.
        case RowLevelOperationTable(table: SparkTable, _) => checkIceberg(table)
        case other => Allowed.refuse(s"the relation ${other.name}")
      }
      (relation.catalog, relation.identifier) match {
        case (Some(catalog), Some(name)) => readable(catalog, name)
        case _ => Allowed.refuse(s"the relation ${relation.name}")
      }
    case relation: LogicalRelation => (relation.relation, relation.catalogTable) match {
      case (_: HadoopFsRelation, Some(table)) => readable(table.identifier)
      case (other, _) => Allowed.refuse(s"the relation ${other.getClass.getSimpleName}")
    }
    case relation: HiveTableRelation => readable(relation.tableMeta.identifier)
    case ResolvedTable(catalog, name, _, _) => named(catalog, name.namespace.toSeq :+ name.name)
    case ResolvedIdentifier(catalog, name) => named(catalog, name.namespace.toSeq :+ name.name)
    case ResolvedNamespace(catalog, name, _) => named(catalog, name)
    case command: Command =>
      if (AllowedRelations.writes(command.getClass)) {
        val target = AllowedRelations.target(command)
        if (!target.contains(Allowed.sandbox)) Allowed.refuse(s"${Allowed.words(command)} outside of the catalog ${Allowed.sandbox}")
      } else if (!AllowedRelations.questions(command.getClass)) {
        Allowed.refuse(Allowed.words(command))
      }
    case leaf: LeafNode if !AllowedRelations.leaves(leaf.getClass) => Allowed.refuse(Allowed.words(leaf))
    case _ =>
  }

  private def checkIceberg(table: SparkTable): Unit = table.table match {
    case _: FilesTable | _: HistoryTable | _: PartitionsTable | _: RefsTable | _: SnapshotsTable =>
    case other: BaseMetadataTable => Allowed.refuse(s"the metadata table ${other.name}")
    case _ =>
  }

  /** A name may be the current namespace's in part, so it is looked at whole here. */
  private def named(catalog: CatalogPlugin, name: Seq[String]): Unit = {
    known(catalog)
    Allowed.names(name)
  }

  private def known(catalog: CatalogPlugin): Unit = if (!catalogs(catalog.name)) Allowed.refuse(s"the catalog ${catalog.name}")

  private def readable(catalog: CatalogPlugin, name: Identifier): Unit = {
    known(catalog)
    if (catalog.name != Allowed.sandbox) readable(name.namespace.toSeq :+ name.name)
    else Allowed.names(name.namespace.toSeq :+ name.name)
  }

  private def readable(name: TableIdentifier): Unit = readable(name.database.toSeq :+ name.table)

  private def readable(parts: Seq[String]): Unit = {
    // The metastore's names have no case.
    val name = parts.map(_.toLowerCase(Locale.ROOT))
    if (!databases(name.head)) Allowed.refuse(s"the database ${name.head}")
    if (closed(name.take(2).mkString("."))) Allowed.refuse(s"the table ${name.take(2).mkString(".")}, which holds personal data,")
  }
}

object AllowedRelations {
  private val leaves: Set[Class[_]] = Set(
    classOf[CTERelationRef], classOf[CommandResult], classOf[LocalRelation], OneRowRelation().getClass, classOf[Range],
    classOf[ResolvedInlineTable], classOf[ResolvedNonPersistentFunc], classOf[ResolvedTempView], classOf[UnionLoopRef])

  private val questions: Set[Class[_]] = Set(
    classOf[CreateViewCommand], classOf[DescribeColumn], classOf[DescribeColumnCommand], classOf[DescribeDatabaseCommand],
    classOf[DescribeFunction], classOf[DescribeFunctionCommand], classOf[DescribeNamespace], classOf[DescribeQueryCommand],
    classOf[DescribeRelation], classOf[DescribeRelationJsonCommand], classOf[DescribeTableCommand], classOf[DropTempViewCommand],
    classOf[ExplainCommand], classOf[NoopCommand], classOf[ResetCommand], classOf[SetCatalogAndNamespace], classOf[SetCatalogCommand],
    classOf[SetCommand], classOf[SetNamespaceCommand], classOf[ShowCatalogsCommand], classOf[ShowColumns], classOf[ShowColumnsCommand],
    classOf[ShowCreateTable], classOf[ShowCreateTableAsSerdeCommand], classOf[ShowCreateTableCommand],
    ShowCurrentNamespaceCommand().getClass, classOf[ShowFunctions], classOf[ShowFunctionsCommand], classOf[ShowIcebergViews],
    classOf[ShowNamespacesCommand],
    classOf[ShowPartitions], classOf[ShowPartitionsCommand], classOf[ShowTablePartition], classOf[ShowTableProperties],
    classOf[ShowTablePropertiesCommand], classOf[ShowTables], classOf[ShowTablesCommand], classOf[ShowTablesExtended], classOf[ShowViews],
    classOf[ShowViewsCommand])

  private val writes: Set[Class[_]] = Set(
    classOf[AddColumns], classOf[AlterColumns], classOf[AppendData], classOf[CreateNamespace], classOf[CreateTable],
    classOf[CreateTableAsSelect], classOf[DeleteFromTable], classOf[DropColumns], classOf[DropNamespace], classOf[DropTable],
    classOf[MergeIntoTable], classOf[OverwriteByExpression], classOf[OverwritePartitionsDynamic], classOf[RenameColumn],
    classOf[ReplaceColumns], classOf[ReplaceData], classOf[ReplaceTable], classOf[ReplaceTableAsSelect], classOf[TruncateTable],
    classOf[UpdateTable], classOf[WriteDelta])

  /** Return the catalog that a statement writes to. */
  private def target(command: LogicalPlan): Option[String] = (command match {
    case write: V2WriteCommand => write.table
    case merge: MergeIntoTable => merge.targetTable
    case create: V2CreateTableAsSelectPlan => create.name
    case other => other.children.head
  }) match {
    case relation: NamedRelation => catalogOf(relation)
    case plan => EliminateSubqueryAliases(plan) match {
      case ResolvedTable(catalog, _, _, _) => Some(catalog.name)
      case ResolvedIdentifier(catalog, _) => Some(catalog.name)
      case ResolvedNamespace(catalog, _, _) => Some(catalog.name)
      case relation => catalogOf(relation)
    }
  }

  private def catalogOf(plan: LogicalPlan): Option[String] = plan match {
    case relation: DataSourceV2Relation => relation.catalog.map(_.name)
    case _ => None
  }
}
