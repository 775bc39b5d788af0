// Bounds of planning on the readers server: how long and how large a statement may be before it is analysed, what is not worked out while it is
// planned, and places at which an interrupt is looked at.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import scala.collection.mutable

import org.apache.spark.TaskContext
import org.apache.spark.sql.{SparkSession, SparkSessionExtensions}
import org.apache.spark.sql.catalyst.{FunctionIdentifier, InternalRow, TableIdentifier}
import org.apache.spark.sql.catalyst.analysis._
import org.apache.spark.sql.catalyst.expressions._
import org.apache.spark.sql.catalyst.expressions.codegen.{CodegenContext, CodegenFallback, ExprCode}
import org.apache.spark.sql.catalyst.parser.{ParameterContext, ParserInterface}
import org.apache.spark.sql.catalyst.plans.logical._
import org.apache.spark.sql.catalyst.rules.Rule
import org.apache.spark.sql.catalyst.trees.TreeNode
import org.apache.spark.sql.execution.command.ExplainCommand
import org.apache.spark.sql.types.{ArrayType, DataType, MapType, StructType}
import org.apache.spark.unsafe.types.UTF8String

class Bounds extends (SparkSessionExtensions => Unit) {
  override def apply(extensions: SparkSessionExtensions): Unit = {
    extensions.injectParser((_, parser) => new BoundedParser(parser))
    // Between the rules, so that an interrupt ends planning too.
    extensions.injectResolutionRule(_ => Interrupt)
    extensions.injectOptimizerRule(_ => Interrupt)
    extensions.injectCheckRule(_ => Bounds.checkAnalysed)
    extensions.injectPlanNormalizationRule(_ => AtRunTime)
  }
}

object Bounds {
  /** Of a statement's text: ten thousand identifiers of 36 characters fit twice. */
  val characters = 1000000
  /** Of a statement as written, in nodes of its tree; a literal counts a tenth. */
  val nodes = 20000.0
  /** Of a statement when what it names is put in place: the parts of WITH, columns of columns, stars, grouping sets. */
  val expanded = 1000000.0
  val depth = 500
  /** Of brackets in brackets: the parser's time grows with their square. */
  val brackets = 200
  val partitions = 10000

  def refuse(what: String): Nothing = throw new UnsupportedOperationException(s"the statement is refused: $what")

  def tooLong(text: String): String =
    f"the statement is refused: it has ${text.length}%,d characters, and $characters%,d are allowed; put long lists into a table of the sandbox and join it"
  def tooDeep: Nothing =
    refuse(s"it is nested too deep ($brackets brackets, $depth levels); split it, or use a temporary view")

  /** Of a type in a type, and of the fields of all, each counted as often as types hold it: the parser's time grows with more than the square. */
  private val (typesInEachOther, fields) = (30, 3000)
  private val partOfType = "(?i)(?:struct|array|map)\\s*<|>|,".r

  /** Refuse a statement with types that take longer to parse than anything else of it. */
  def checkTypes(text: String): Unit = {
    var (now, all) = (0, 0)
    partOfType.findAllIn(text).foreach {
      case ">" => now = math.max(0, now - 1)
      case "," => all += now
      case _ =>
        now += 1
        all += now
        if (now > typesInEachOther) tooManyTypes
    }
    if (all > fields) refuse(s"its types have more than $fields fields")
  }

  private def tooManyTypes: Nothing = refuse(s"a type holds more than $typesInEachOther types in each other")

  /** The same for a text that is a schema, or an example of one; its length counts with the statement's nodes. */
  def checkSchema(text: String): Unit = {
    var now = 0
    text.foreach {
      case '<' | '{' | '[' => now += 1; if (now > typesInEachOther) tooManyTypes
      case '>' | '}' | ']' => now -= 1
      case _ =>
    }
  }

  /** Functions that parse one of their arguments while a statement is analysed. */
  val schemas = Set("from_json", "from_csv", "schema_of_json", "schema_of_csv", "variant_get", "try_variant_get")

  /** Of a table of the sandbox: a star is put in place before anything can be measured. */
  private val tableColumns = 1000

  private def tooWide: Nothing = refuse(f"a table has at most $tableColumns%,d columns")

  private val wildcards = 5

  /** Refuse a pattern that is more than a name with a few wildcards: Hive's way is to look for it as a regular expression, which may take for ever. */
  def pattern(text: String): Unit =
    if (!text.matches("[\\p{L}\\p{M}\\p{N}_ $%*|.\\\\-]*") || text.count("*%|".contains(_)) > wildcards) {
      refuse(s"the pattern '${text.take(60)}' is more than a name with at most $wildcards of * % |")
    }

  /** Return how deep brackets stand in brackets; those in texts and comments count too, as nobody writes so many. */
  def nesting(text: String): Int = {
    var (now, most) = (0, 0)
    text.foreach {
      case '(' | '[' => now += 1; most = math.max(most, now)
      case ')' | ']' => now -= 1
      case _ =>
    }
    most
  }

  def tooLarge: Nothing =
    refuse("it is too large to be planned; ask for less at a time, or put long lists into a table of the sandbox and join it")

  val checkAnalysed: LogicalPlan => Unit = plan => {
    plan.foreach {
      case write: V2CreateTableAsSelectPlan if write.query.output.size > tableColumns => tooWide
      case table: V2CreateTablePlan if table.tableSchema.size > tableColumns => tooWide
      case range: Range if range.numSlices.exists(_ > partitions) => refuse(s"range has more than $partitions parts; leave out their number")
      case _ =>
    }
    new Grown().of(plan)
  }
}

class BoundedParser(parser: ParserInterface) extends ParserInterface {
  private def bounded[Parsed](text: String)(parse: => Parsed): Parsed = {
    if (text.length > Bounds.characters) throw new UnsupportedOperationException(Bounds.tooLong(text))
    if (Bounds.nesting(text) > Bounds.brackets) Bounds.tooDeep
    Bounds.checkTypes(text)
    val parsed = try parse catch { case _: StackOverflowError => Bounds.tooDeep }
    parsed match {
      case tree: TreeNode[_] =>
        val size = try new Size().of(tree) catch { case _: StackOverflowError => Bounds.tooDeep }
        // A view is parsed whenever it is named, for the statement that names it.
        val statement = Statement.current.get
        val total = if (statement == null) size else { statement.cost += size; statement.cost }
        if (total > Bounds.nodes) Bounds.tooLarge
      case _ =>
    }
    parsed
  }

  override def parsePlan(text: String): LogicalPlan = NoConstants.in(bounded(text)(parser.parsePlan(text)))
  override def parsePlanWithParameters(text: String, parameters: ParameterContext): LogicalPlan =
    NoConstants.in(bounded(text)(parser.parsePlanWithParameters(text, parameters)))
  override def parseQuery(text: String): LogicalPlan = NoConstants.in(bounded(text)(parser.parseQuery(text)))
  override def parseExpression(text: String): Expression = bounded(text)(parser.parseExpression(text))
  override def parseTableIdentifier(text: String): TableIdentifier = bounded(text)(parser.parseTableIdentifier(text))
  override def parseFunctionIdentifier(text: String): FunctionIdentifier = bounded(text)(parser.parseFunctionIdentifier(text))
  override def parseMultipartIdentifier(text: String): Seq[String] = bounded(text)(parser.parseMultipartIdentifier(text))
  override def parseRoutineParam(text: String): StructType = bounded(text)(parser.parseRoutineParam(text))
  override def parseTableSchema(text: String): StructType = bounded(text)(parser.parseTableSchema(text))
  override def parseDataType(text: String): DataType = bounded(text)(parser.parseDataType(text))
}

/** Measures a parsed tree: its nodes as written, and an estimate of those it has when it is planned. */
class Size {
  /** What a name stands for: nodes of its plan, number of its columns, and nodes of those that are worth more than one. */
  private case class Shape(nodes: Double, columns: Double, worth: Map[String, Double])
  private val table = Shape(1, Size.tableColumns, Map.empty)
  private var written = 0.0

  /** Return the nodes as written; refuses a tree that would grow too large. */
  def of(tree: TreeNode[_]): Double = {
    tree match {
      case plan: LogicalPlan => shape(plan, Map.empty, 0)
      case expression: Expression => worth(expression, Map.empty, Map.empty, 0)
      case _ =>
    }
    written
  }

  private def grown(nodes: Double): Double = if (nodes > Bounds.expanded) Bounds.tooLarge else nodes

  private def deeper(depth: Int): Int = if (depth >= Bounds.depth) Bounds.tooDeep else depth + 1

  private def shape(plan: LogicalPlan, names: Map[String, Shape], depth: Int): Shape = {
    written += (if (Size.joins(plan)) Size.join else 1)
    val below = deeper(depth)
    plan match {
      case UnresolvedWith(child, parts, _) =>
        var known = names
        for (part <- parts) known += part._1.toLowerCase -> shape(part._2, known, below)
        shape(child, known, below)
      case relation: UnresolvedRelation if relation.multipartIdentifier.size == 1 =>
        names.getOrElse(relation.multipartIdentifier.head.toLowerCase, table)
      case inline: UnresolvedInlineTable =>
        val nodes = inline.rows.iterator.flatten.map(worth(_, Map.empty, names, below)).sum
        Shape(grown(nodes), inline.names.size, Map.empty)
      case _ if plan.children.isEmpty && plan.innerChildren.isEmpty && plan.expressions.isEmpty => nested(plan, names, below).getOrElse(table)
      case _ =>
        val children = plan.children.map(shape(_, names, below))
        val inner = plan.innerChildren.collect { case one: LogicalPlan => shape(one, names, below).nodes }.sum
        val width = if (children.isEmpty) table.columns else children.map(_.columns).sum
        val from = children.flatMap(_.worth).groupMapReduce(_._1)(_._2)(math.max) + (Size.all -> width)
        def cost(expression: Expression): Double = worth(expression, from, names, below)
        val base = children.map(_.nodes).sum + inner + nested(plan, names, below).map(_.nodes).getOrElse(0.0) +
          (if (Size.joins(plan)) Size.joinExpanded else 1)
        plan match {
          case Project(list, _) => outputs(list, base, from, worth(_, _, names, below))
          case Aggregate(by, list, _, _) =>
            val sets = by.map(groupingSets).product
            val shape = outputs(list, base + by.map(cost).sum, from, worth(_, _, names, below))
            shape.copy(nodes = grown(shape.nodes + sets * (by.size + list.size)))
          case pivot: Pivot =>
            val columns = pivot.pivotValues.size.toDouble * pivot.aggregates.map(cost).sum
            Shape(grown(base + columns), grown(width + columns), Map.empty)
          case unpivot: Unpivot =>
            val rows = math.max(unpivot.values.map(_.size.toDouble).getOrElse(width), 1)
            Shape(grown(base + rows * (width + unpivot.expressions.size)), width, Map.empty)
          case _ => Shape(grown(base + plan.expressions.map(cost).sum), width, from)
        }
    }
  }

  /** A statement about a query has it among its parts, not among its children. */
  private def nested(plan: LogicalPlan, names: Map[String, Shape], depth: Int): Option[Shape] = plan match {
    case _: Command | _: ParsedStatement =>
      val parts = plan.productIterator.collect { case part: LogicalPlan if !plan.children.contains(part) && !plan.innerChildren.contains(part) => part }
      parts.map(shape(_, names, depth)).reduceOption((one, other) => Shape(grown(one.nodes + other.nodes), one.columns, Map.empty))
    case _ => None
  }

  private def outputs(list: Seq[Expression], base: Double, from: Map[String, Double], cost: (Expression, Map[String, Double]) => Double): Shape = {
    var (nodes, columns, worths) = (base, 0.0, Map.empty[String, Double])
    // A column may be made of those before it in the same list.
    var known = from
    list.foreach {
      case star: Star =>
        val all = cost(star, from)
        nodes += all
        columns += all
        worths = from ++ worths
      case item =>
        val one = cost(item, known)
        nodes += one
        columns += 1
        item match {
          case named: Alias if one > 2 =>
            worths += named.name.toLowerCase -> one
            known = from.get(named.name.toLowerCase).fold(known + (named.name.toLowerCase -> one))(_ => known)
          case _ =>
        }
    }
    Shape(grown(nodes), grown(columns), worths)
  }

  private def schemaBytes(function: UnresolvedFunction): Double =
    function.arguments.collect { case Literal(text: UTF8String, _) => text.numBytes.toDouble }.sum

  private def groupingSets(by: Expression): Double = by match {
    case cube: Cube => math.pow(2, cube.groupingSets.size)
    case rollup: Rollup => rollup.groupingSets.size + 1.0
    case sets: GroupingSets => sets.flatGroupingSets.size.toDouble
    case _ => 1
  }

  /** Nodes of an expression when its columns are put in place. */
  private def worth(expression: Expression, from: Map[String, Double], names: Map[String, Shape], depth: Int): Double = {
    val below = deeper(depth)
    expression match {
      case literal: Literal =>
        written += Size.literal
        literal.value match {
          // A long text that columns of columns put together again and again is worked out by the planner.
          case text: UTF8String => Size.literal + text.numBytes * Size.byte
          case _ => Size.literal
        }
      case name: UnresolvedAttribute =>
        written += 1
        from.getOrElse(name.nameParts.last.toLowerCase, 1)
      case star: Star =>
        // Nobody knows yet how wide a table is.
        written += Size.star
        val fields = star match {
          case UnresolvedStar(Some(target)) => from.get(target.last.toLowerCase)
          case _ => None
        }
        fields.orElse(from.get(Size.all)).getOrElse(table.columns)
      case _ =>
        written += (expression match {
          case _: UpdateStarAction | _: InsertStarAction => Size.star
          case _: WindowExpression | _: UnresolvedWindowExpression => Size.join
          case function: UnresolvedFunction if Bounds.schemas(function.nameParts.last.toLowerCase) => schemaBytes(function)
          case _ => 1
        })
        val plans = expression match {
          case subquery: PlanExpression[_] => subquery.plan match {
            case plan: LogicalPlan =>
              written += Size.join
              shape(plan, names, below).nodes + Size.joinExpanded
            case _ => 0
          }
          case _ => 0.0
        }
        val children = expression match {
          case alias: UnresolvedAlias => Seq(alias.child)
          case _ => expression.children
        }
        val fields = expression match {
          case cast: Cast => Size.fields(cast.dataType)
          case function: UnresolvedFunction if Bounds.schemas(function.nameParts.last.toLowerCase) => schemaBytes(function) * Size.field
          case _ => 0
        }
        grown(1 + fields + plans + children.map(worth(_, from, names, below)).sum)
    }
  }
}

/**
 * Measures an analysed plan as the optimiser would make it: it puts what a column is made of in the place of the column, for views, aliases that
 * use each other, and structs too, which nobody can tell before names are known.
 */
class Grown {
  private val worth = mutable.Map[ExprId, Double]()
  private val parts = mutable.Map[Long, LogicalPlan]()
  private var total = 0.0

  /** Refuse a plan that would grow too large. */
  def of(plan: LogicalPlan): Unit = {
    plan match {
      case CTERelationRef(id, _, output, _, _, _, _, _) => for (part <- parts.get(id); (own, inner) <- output.zip(part.output)) worth(own.exprId) = of(inner)
      case _ =>
    }
    plan.children.foreach(of)
    plan.innerChildren.collect { case inner: LogicalPlan => of(inner) }
    plan match {
      case part: CTERelationDef => parts(part.id) = part.child
      case _ =>
    }
    // What an aggregate or a window gives is a value; nothing is put in its place.
    val isValue = plan.isInstanceOf[Aggregate] || plan.isInstanceOf[Window]
    plan.expressions.foreach {
      case alias: Alias =>
        val one = of(alias.child)
        if (!isValue) worth(alias.exprId) = one
        add(one)
      case other => add(of(other))
    }
  }

  private def of(expression: Expression): Double = expression match {
    case attribute: Attribute => worth.getOrElse(attribute.exprId, 1)
    case subquery: PlanExpression[_] =>
      subquery.plan match {
        case plan: LogicalPlan => of(plan)
        case _ =>
      }
      1 + subquery.children.map(of).sum
    case _ => 1 + expression.children.map(of).sum
  }

  private def add(nodes: Double): Unit = {
    total += nodes
    if (total > Bounds.expanded) Bounds.tooLarge
  }
}

object Size {
  /** Key of the number of columns that a star stands for. */
  private val all = "*"
  /** Of a byte of a schema: the shortest field has four, as in `a int`. */
  private val field = 0.25

  private def fields(kind: DataType): Double = kind match {
    case struct: StructType => struct.fields.map(field => 1 + fields(field.dataType)).sum
    case array: ArrayType => fields(array.elementType)
    case map: MapType => fields(map.keyType) + fields(map.valueType)
    case _ => 0
  }

  private val literal = 0.1
  private val byte = 0.01
  /** Of a join, a subquery or a window: each has memory of its own, and threads or jobs. A hundred are allowed. */
  private val join = Bounds.nodes / 100
  /** Of a star: two hundred are allowed. */
  private val star = Bounds.nodes / 200
  private val joinExpanded = Bounds.expanded / 100

  private def joins(plan: LogicalPlan): Boolean = plan.isInstanceOf[Join] || plan.isInstanceOf[LateralJoin]
  private val tableColumns = 20.0
}

/** Ends planning of a statement that was ended. */
object Interrupt extends Rule[LogicalPlan] {
  def check(): Unit = if (Thread.currentThread.isInterrupted) throw new InterruptedException("the statement was ended")

  override def apply(plan: LogicalPlan): LogicalPlan = {
    check()
    plan
  }
}

/**
 * Functions that make much of little or compare all with all, and regular expressions, are no constants, so that tasks work them out: as a schema, a LIMIT, a row of VALUES
 * or a folded constant, the server's own threads would.
 */
object NoConstants {
  def in(plan: LogicalPlan): LogicalPlan = plan.transformWithSubqueries {
    case UnresolvedWith(child, parts, recursive) =>
      UnresolvedWith(child, parts.map(part => (part._1, in(part._2).asInstanceOf[SubqueryAlias], part._3)), recursive)
    case explained: ExplainCommand => explained.copy(logicalPlan = in(explained.logicalPlan))
    case other => other.transformExpressions {
      case function: UnresolvedFunction if function.arguments.nonEmpty && Functions.large(function.nameParts.last.toLowerCase) && !late(function.arguments.head) =>
        function.copy(arguments = NotWhilePlanning(function.arguments.head) +: function.arguments.tail)
      // Over a column they may become a part of what is asked of a table.
      case test if AtRunTime.costly(test) && !late(test.children.head) && !test.exists(_.isInstanceOf[Attribute]) => AtRunTime.later(test)
    }
  }

  private def late(argument: Expression): Boolean = argument.isInstanceOf[NotWhilePlanning]
}

/** The same for operators that become constants while a statement is optimised. Loops over arrays look at interrupts. */
object AtRunTime extends Rule[LogicalPlan] {
  override def apply(plan: LogicalPlan): LogicalPlan = plan.transformAllExpressionsWithSubqueries {
    case lambda: LambdaFunction if !lambda.function.isInstanceOf[Interruptible] => lambda.copy(function = Interruptible(lambda.function))
    case test if costly(test) && test.foldable => later(test)
  }

  def costly(expression: Expression): Boolean = expression match {
    case _: StringRegexExpression | _: MultiLikeBase | _: ILike | _: StringLocate | _: String2TrimExpression => true
    case _ => false
  }

  def later(expression: Expression): Expression =
    expression.withNewChildren(NotWhilePlanning(expression.children.head) +: expression.children.tail)
}

/** Its child, which the planner must not replace by its value. */
case class NotWhilePlanning(child: Expression) extends UnaryExpression {
  override def foldable: Boolean = false
  override def nullable: Boolean = child.nullable
  override def dataType: DataType = child.dataType
  override def sql: String = child.sql
  override def toString: String = child.toString
  override def eval(row: InternalRow): Any = child.eval(row)
  override protected def doGenCode(context: CodegenContext, code: ExprCode): ExprCode = child.genCode(context)
  override protected def withNewChildInternal(changed: Expression): NotWhilePlanning = copy(child = changed)
}

/** The body of a loop over an array: a loop in a loop may run for ever. */
case class Interruptible(child: Expression) extends UnaryExpression with CodegenFallback {
  override def nullable: Boolean = child.nullable
  override def dataType: DataType = child.dataType
  override def eval(row: InternalRow): Any = {
    Interrupt.check()
    child.eval(row)
  }
  override protected def withNewChildInternal(changed: Expression): Interruptible = copy(child = changed)
}
