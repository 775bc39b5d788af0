"""Statements of Spark's grammar at random: walks the ATN of Spark's own `SqlBaseParser` and fills in real names.

A walk alone seldom makes a statement that Spark can analyse. So a rule that needs a name, a typed expression or as many
columns as another one has a method here (`_shape_RULE`), which writes it most of the time; the walk writes the rest.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from py4j.java_gateway import GatewayParameters, JavaGateway, launch_gateway

from etl.stack import jars, machine

# Kinds of states and edges in ANTLR's serialized ATN (version 4).
INVALID, BLOCKS, RULE_STOP, BLOCK_END, LOOP_END = 0, (3, 4, 5), 7, 8, 12
RULE, ATOM, SET, WILDCARD = 3, 5, 7, 9
ANY = "<ANY>"
DEEP = 17
"""Rules inside each other; from there on the shortest way to the end is taken."""


@dataclass(frozen=True)
class Edge:
    """A step from state to state: past nothing, a token (one of `tokens`), or a rule.

    Tokens are written as in SQL; of those that have many forms there is the kind, as in `<INTEGER_VALUE>`.
    """

    target: int
    tokens: tuple[str, ...] = ()
    rule: str = ""

    @property
    def label(self) -> str:
        return self.rule or "|".join(self.tokens)


@dataclass
class Grammar:
    """Rules as graphs of states: each way from a rule's start to its stop is something that the rule allows."""

    starts: dict[str, int]
    stops: dict[str, int]
    kinds: list[int]
    edges: dict[int, list[Edge]]
    costs: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.costs = dict.fromkeys(self.stops.values(), 0.0)
        changed = True
        while changed:
            changed = False
            for state, edges in self.edges.items():
                cost = min((self.cost(edge) for edge in edges), default=float("inf"))
                if cost < self.costs.get(state, float("inf")):
                    self.costs[state] = cost
                    changed = True

    def cost(self, edge: Edge) -> float:
        """Fewest tokens from here to the rule's end."""
        own = self.costs.get(self.starts[edge.rule], float("inf")) if edge.rule else len(edge.tokens[:1])
        return own + self.costs.get(edge.target, float("inf"))

    def first(self, edge: Edge) -> str:
        """Return what comes first on this way; empty where the way skips an optional part, or forks."""
        while not edge.label:
            if self.kinds[edge.target] in (BLOCK_END, LOOP_END, RULE_STOP) or len(self.edges[edge.target]) != 1:
                return ""
            edge = self.edges[edge.target][0]
        return edge.label

    def alternatives(self, rule: str) -> list[Edge]:
        """Return the first choice that a rule offers."""
        state = self.starts[rule]
        while len(self.edges[state]) == 1:
            state = self.edges[state][0].target
        return self.edges[state]

    def shortest(self, edge: Edge) -> str:
        """Name an alternative by its shortest form."""
        words = [edge.label]
        while self.edges.get(edge.target):
            edge = min(self.edges[edge.target], key=self.cost)
            words.append(edge.label)
        return " ".join(word for word in words if word)


@functools.cache
def spark_grammar() -> Grammar:
    """Read the grammar out of Spark's jars."""
    java = str(machine.java_home() / "bin" / "java")
    port = launch_gateway(classpath=f"{jars.PYSPARK_JARS}/*", java_path=java, die_on_exit=True)
    gateway = JavaGateway(gateway_parameters=GatewayParameters(port=port, auto_field=True))
    try:
        jvm = gateway.jvm
        parser, serializer = (
            jvm.org.apache.spark.sql.catalyst.parser.SqlBaseParser,
            jvm.org.antlr.v4.runtime.atn.ATNSerializer,
        )
        # As one text: fetched one by one the numbers take seconds.
        numbers = json.loads(jvm.java.util.Arrays.toString(serializer.getSerialized(parser._ATN).toArray()))
        words = parser.VOCABULARY
        tokens = [
            (words.getLiteralName(kind) or "").strip("'") or f"<{words.getSymbolicName(kind)}>"
            for kind in range(parser._ATN.maxTokenType + 1)
        ]
        return _decoded(numbers, list(parser.ruleNames), tokens)
    finally:
        gateway.shutdown()


def _decoded(numbers: list[int], rules: list[str], tokens: list[str]) -> Grammar:
    rest = iter(numbers)

    def take() -> int:
        return next(rest)

    def many() -> range:
        return range(take())

    version, _grammar_type, _last_token = take(), take(), take()
    assert version == 4, f"an ATN of version {version}"
    kinds, stops = [], {}
    for state in many():
        kinds.append(take())
        if kinds[-1] != INVALID:
            rule = take()
            if kinds[-1] in (*BLOCKS, LOOP_END):
                take()
            if kinds[-1] == RULE_STOP:
                stops[rules[rule]] = state
    for _ in range(2):
        for _ in many():
            take()
    starts = {rules[rule]: take() for rule in many()}
    for _ in many():
        take()
    sets: list[tuple[str, ...]] = []
    for _ in many():
        intervals, _has_end = take(), take()
        ranges = [(take(), take()) for _ in range(intervals)]
        sets.append(tuple(tokens[kind] for first, last in ranges for kind in range(first, last + 1)))
    edges: dict[int, list[Edge]] = {state: [] for state in range(len(kinds))}
    for _ in many():
        source, target, kind, first, second, third = (take() for _ in range(6))
        if kind == RULE:
            edge = Edge(target, rule=rules[second])
        elif kind == ATOM:
            edge = Edge(target, () if third else (tokens[first],))
        elif kind == SET:
            edge = Edge(target, sets[first])
        else:
            edge = Edge(target, (ANY,) if kind == WILDCARD else ())
        edges[source].append(edge)
    return Grammar(starts, stops, kinds, edges)


SYMBOLS = {
    "<EQ>": "=", "<LTE>": "<=", "<GTE>": ">=", "<RLIKE>": "RLIKE", "<INTEGER_VALUE>": "3", "<EXPONENT_VALUE>": "1E3",
    "<DECIMAL_VALUE>": "2.5", "<FLOAT_LITERAL>": "1.5F", "<DOUBLE_LITERAL>": "2.5D", "<BIGINT_LITERAL>": "7L", "<SMALLINT_LITERAL>": "7S",
    "<TINYINT_LITERAL>": "7Y", "<BIGDECIMAL_LITERAL>": "1.5BD", "<IDENTIFIER>": "id", "<BACKQUOTED_IDENTIFIER>": "`id`",
    "<DOUBLEQUOTED_STRING>": '"text"', "<STRING_LITERAL>": "'text'", "<EOF>": "", "<TEMPORARY>": "TEMPORARY",
}  # fmt: skip

COLUMNS = {"id": "bigint", "amount": "decimal(10,2)", "name": "string", "day": "date", "at": "timestamp", "flag": "boolean",
           "tags": "array<int>"}  # fmt: skip
"""Each table of the test has these."""
TYPES = {"id": "num", "amount": "num", "name": "str", "day": "date", "at": "time", "flag": "bool", "tags": "list"}
NEW_TYPES = (
    "int", "bigint", "double", "decimal(10, 2)", "string", "date", "timestamp", "boolean", "array<int>",
    "struct<a: int, b: string>", "map<string, int>", "binary",
)  # fmt: skip
READ = (
    "ops.walk", "ops.walk", "ops.walk_files", "spark_catalog.ops.walk", "sandbox.walk.first",
    "sandbox.walk.first", "sandbox.walk.second",
)  # fmt: skip
WRITTEN = ("sandbox.walk.first", "sandbox.walk.second")
MADE = ("sandbox.walk.made1", "sandbox.walk.made2", "sandbox.walk.made3")
VIEWS = ("walk_view1", "walk_view2")
SPACES = ("ops", "core", "sandbox.walk", "mart", "spark_catalog.ops", "feature")
# What somebody would try who wants out.
TRAPS = (
    "text.`/etc/passwd`", "text.`file:///etc/passwd`",
    "parquet.`hdfs://{hdfs}/warehouse/core/customers_personal`", "csv.`{marker}`",
    "iceberg.`hdfs://{hdfs}/warehouse/ops/walk`", "sandbox.`hdfs://{hdfs}/warehouse/ops/walk`",
    "sandbox.`../warehouse/ops/walk`", "core.customers_personal", "raw.customers", "ops.walk_personal",
    "hive.core.transactions", "loads.ops.walk", "global_temp.walk_view1", "spark_catalog.default.walk",
    "sandbox.ops.walk", "system.session.walk", "jdbc.`jdbc:derby:memory:x;create=true`",
    "ops.walk.all_data_files", "ops.walk.position_deletes", "sandbox.walk.first.manifests",
    "binaryFile.`file://{marker}`",
)  # fmt: skip
TRAP_SPACES = (
    "sandbox", "unknown", "loads.ops", "sandbox.`../warehouse`", "global_temp", "spark_catalog", "default",
    "sandbox.walk.deep",
)  # fmt: skip
FUNCTION_TRAPS = (
    "reflect('java.lang.System', 'setProperty', 'walk', 'caught')",
    "java_method('java.lang.System', 'setProperty', 'walk', 'caught')",
    "try_reflect('java.lang.System', 'clearProperty', 'java.security.policy')",
    "from_xml('<a>1</a>', 'a int')", "schema_of_xml('<a/>')",
    'xpath(\'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>\', \'a/text()\')',
    "xpath_string('<a><b>1</b></a>', 'a/b')", 'from_avro(binary(\'a\'), \'{{"type": "int"}}\')',
    "from_protobuf(binary('a'), 'A', 'file://{marker}')", "input_file_name()", "spark_partition_id()",
    "version()", "walk_function(1)", "ops.walk_function(1)", "sandbox.system.bucket(4, 1)", "to_avro(1)",
    "in_file(1, '/etc/passwd')", "current_database()", "getvariable('x')", "bloom_filter_agg(1)",
)  # fmt: skip
TABLE_FUNCTIONS = (
    "range(5)", "range(1, 9)", "explode(array(1, 2))", "stack(2, 1, 2, 3, 4)", "posexplode(array(1, 2))",
    "inline(array(struct(1, 'a')))", 'json_tuple(\'{{"a": 1}}\', \'a\')', "sql_keywords()", "collations()",
    "read_files('file://{marker}')", "python_worker_logs()", "variant_explode(parse_json('[1]'))",
)  # fmt: skip
STRINGS = (
    "a", "b%", "2026-01-02", "2026-01-02 03:04:05", "walk*", "*", "UTC", "1", "file://{marker}/out",
    "{marker}/out", "/etc/passwd", "hdfs://{hdfs}/warehouse/core/customers_personal",
    "hdfs://{hdfs}/warehouse/ops/out", "hdfs://{hdfs}/sandbox/walk/first",
    "org.apache.derby.jdbc.EmbeddedDriver",
    "org.apache.spark.sql.execution.datasources.v2.jdbc.JDBCTableCatalog",
    "org.apache.hadoop.hive.ql.udf.generic.GenericUDFReflect", "${{system:user.name}}", "${{env:PATH}}",
    "jdbc:derby:memory:walk;create=true", "cat {marker} > {marker}/out", "SELECT 1",
    "INSERT INTO ops.walk SELECT * FROM ops.walk",
)  # fmt: skip
PATHS = (
    "{marker}/walk.jar", "file://{marker}/walk.jar", "hdfs://{hdfs}/sandbox/walk/first", "/etc/passwd",
    "'file://{marker}'", "hdfs://{hdfs}/missing.zip",
)  # fmt: skip
KEYS = (
    "spark.sql.catalog.walk", "spark.sql.catalog.sandbox.warehouse", "spark.sql.runSQLOnFiles",
    "spark.sql.extensions", "location", "path", "provider", "url", "driver", "dbtable",
    "sessionInitStatement", "format-version", "write.data.path", "write.delete.mode", "owner",
    "spark.sql.session.timeZone", "spark.sql.ansi.enabled", "spark.sql.variable.substitute",
    "spark.sql.shuffle.partitions", "hive.metastore.uris", "walk", "write.metadata.path",
    "spark.sql.legacy.allowUntypedScalaUDF", "spark.sql.warehouse.dir",
)  # fmt: skip
PROVIDERS = (
    "iceberg", "iceberg", "parquet", "text", "jdbc", "csv", "orc", "hive", "delta",
    "org.apache.spark.sql.jdbc", "binaryFile",
)  # fmt: skip

Signatures = dict[str, list[tuple[str, str]]]


def _listed(functions: dict[str, str]) -> Signatures:
    return {kind: re.findall(r"(\w+)\(([^)]*)\)", text) for kind, text in functions.items()}


# Harmless functions by the type that they give, with what they take.
FUNCTIONS = _listed(
    {
        "num": """
        abs(num) round(num) length(str) year(date) dayofweek(date) hour(time) size(list) coalesce(num, num)
        greatest(num, num) sqrt(num) instr(str, str) datediff(date, date) ascii(str) element_at(list, one)
        crc32(bin) hash(str) pmod(num, num) signum(num) month(time) levenshtein(str, str) nullif(num, num)
        if(bool, num, num) unix_timestamp(time) ceil(num) array_position(list, one) bit_count(one)
        log10(num) cardinality(list) weekofyear(date)
    """,
        "str": """
        upper(str) lower(str) concat(str, str) trim(str) md5(bin) date_format(time, pattern)
        substring(str, one) replace(str, str) reverse(str) nvl(str, str) repeat(str, one) hex(str)
        concat_ws(str, str, str) initcap(str) lpad(str, one) format_number(num, one) typeof(any)
        split_part(str, str, one) array_join(list, str) base64(bin) sha2(bin, zero) translate(str, str, str)
        to_json(record) get_json_object(str, str) soundex(str) dayname(date) chr(one) quote(str)
        from_unixtime(one) mask(str) url_encode(str)
    """,
        "date": """
        date_add(date, one) last_day(date) to_date(time) trunc(date, unit) add_months(date, one)
        make_date(year, one, one) current_date() next_day(date, weekday) coalesce(date, date)
    """,
        "time": """
        date_trunc(unit, time) to_timestamp(date) now() from_utc_timestamp(time, zone) coalesce(time, time)
        timestamp_seconds(one) make_timestamp(year, one, one, one, one, one)
    """,
        "bool": """
        isnull(any) isnotnull(any) array_contains(list, one) startswith(str, str) contains(str, str)
        isnan(num) coalesce(bool, bool) equal_null(num, num) arrays_overlap(list, list) endswith(str, str)
        rlike(str, str) luhn_check(str)
    """,
        "list": """
        array(one, one) sort_array(list) array_distinct(list) sequence(one, one) array_union(list, list)
        shuffle(list) slice(list, one, one) array_repeat(one, one) array_compact(list) flatten(lists)
        transform(list, lambda) filter(list, test) array_remove(list, one) array_except(list, list)
    """,
    }
)
AGGREGATES = _listed(
    {
        "num": """
        count(any) sum(num) avg(num) max(num) min(num) stddev(num) count(*) approx_count_distinct(str)
        count_if(bool) median(num) corr(num, num) bit_or(one) mode(num) var_pop(num) max_by(num, time)
        any_value(num) first(num) percentile_approx(num, half)
    """,
        "str": """
        max(str) min(str) any_value(str) first(str) string_agg(str) mode(str)
    """,
        "date": """
        max(date) min(date) last(date)
    """,
        "time": """
        max(time) min(time)
    """,
        "bool": """
        bool_and(bool) every(bool) some(bool) max(bool)
    """,
        "list": """
        collect_list(one) collect_set(one) any_value(list) array_agg(one)
    """,
    }
)
WINDOWS = (
    "row_number()", "rank()", "dense_rank()", "ntile(2)", "lag(1)", "percent_rank()", "cume_dist()",
    "lead(1)", "nth_value(1, 1)",
)  # fmt: skip
LITERALS: dict[str, tuple[str, ...]] = {
    "num": ("1", "2", "10", "2.5", "-3", "7L", "1e1", "1.5D", "5S", "NULL"),
    "str": ("'a'", "'b%'", "''", "'x y'", "r'\\d'", "'ü'", "NULL"),
    "date": ("DATE '2026-01-02'", "current_date", "DATE '2025-12-31'"),
    "time": ("TIMESTAMP '2026-01-02 03:04:05'", "current_timestamp", "now()"),
    "bool": ("true", "false"),
    "list": ("array(1, 2)", "array(3)"),
    "one": ("1", "2", "3"), "zero": ("256", "0"), "year": ("2026", "2025"), "half": ("0.5",), "pattern": ("'yyyy'", "'MM-dd'"),
    "unit": ("'MONTH'", "'YEAR'", "'WEEK'"), "zone": ("'UTC'", "'Europe/Berlin'"), "weekday": ("'MON'", "'SUN'"),
    "lists": ("array(array(1), array(2))",), "lambda": ("x -> x + 1", "(x, i) -> x * i"), "test": ("x -> x > 1", "x -> true"), "*": ("*",),
}  # fmt: skip
TYPE_NAMES = {"num": "double", "str": "string", "date": "date", "time": "timestamp", "bool": "boolean", "list": "array<int>"}
VALUES = tuple(TYPE_NAMES)

# What most often makes a statement that Spark refuses comes seldom. By rule, and by what a way begins with; other ways have 1.
WEIGHTS: dict[str, dict[str, float]] = {
    "colDefinition": {"colDefinitionOption": 0.3},
    "constant": {"?": 0.1, "namedParameterMarker": 0.1},
    "createTableClauses": {"OPTIONS": 0.3},
    "ctes": {"RECURSIVE": 0.1},
    "dmlStatementNoWith": {"fromClause": 0.3, "matchedClause": 4, "notMatchedClause": 3},
    "fromClause": {"pivotClause": 0.05, "unpivotClause": 0.05, "lateralView": 0.3},
    "fromStatement": {"fromStatementBody": 4},
    "fromStatementBody": {"selectClause": 20},
    "functionArgument": {"namedArgumentExpression": 0.1},
    "functionTable": {"watermarkClause": 0.05},
    "functionTableArgument": {"functionTableReferenceArgument": 0.1},
    "groupByClause": {"groupingAnalytics": 0.3},
    "insertInto": {"optionsClause": 0.1, "partitionSpec": 0.1},
    "integerValue": {"parameterMarker": 0.05},
    "joinRelation": {"LATERAL": 0.03, "joinCriteria": 9},
    "namedQuery": {"MAX": 0.1},
    "operatorPipeRightSide": {
        "queryOrganization": 0.1, "AGGREGATE": 0.3, "pivotClause": 0.3, "unpivotClause": 0.3,
    },
    "primaryExpression": {"functionName": 5, "constant": 3, "CASE": 2, "*": 0.1, "qualifiedName": 0.1},
    "query": {"ctes": 0.5},
    "queryPrimary": {"querySpecification": 8, "TABLE": 0.6},
    "querySpecification": {
        "selectClause": 30, "fromClause": 12, "aggregationClause": 1.5, "whereClause": 3,
        "havingClause": 0.3, "windowClause": 0.3, "lateralView": 0.4, "transformClause": 0.3,
    },
    "queryTerm": {"|>": 0.7},
    "relation": {"LATERAL": 0.03, "relationExtension": 1},
    "relationExtension": {"joinRelation": 30},
    "relationPrimary": {
        "identifierReference": 6, "streamRelationPrimary": 0.1, "functionTable": 2, "optionsClause": 0.1,
        "watermarkClause": 0.05, "sample": 0.3, "temporalClause": 0.5, "inlineTable": 0.3, "(": 0.5,
    },
    "selectClause": {"hint": 0.1},
    "singleStringLit": {"parameterMarker": 0.03},
    "statement": {"ctes": 0.3, "partitionSpec": 0.2},
    "tableElement": {"tableConstraintDefinition": 0.1},
    "valueExpression": {"+|-|~": 0.3},
}  # fmt: skip
OPTIONAL = 2.0
"""Weight of leaving an optional part out, where a part has 1."""
LOOP = 3.0
"""Weight of ending a repetition."""
RAW = 0.15
"""Share of the rules with a shape that the walk writes all the same."""
NAMES = {"identifier", "strictIdentifier", "errorCapturingIdentifier", "multipartIdentifier", "tableAlias", "query"}
"""Rules that the walk never writes itself: nearly every name would be unknown."""
SHAPED = {
    "constant", "identifierReference", "joinType", "notMatchedAction", "queryOrganization", "relationPrimary", "windowClause",
}  # fmt: skip
"""Rules that it seldom writes."""
TRAPPED = 0.03
"""Share of the names that lead elsewhere."""

Row = list[tuple[str, str]]
FULL: Row = list(TYPES.items())


@dataclass(frozen=True)
class Scope:
    """What an expression may name, and what a query has to give."""

    columns: tuple[tuple[str, str], ...] = ()
    """As they are written, with their types."""
    inner: tuple[tuple[str, str], ...] | None = None
    """What the arguments of an aggregate may name; None where there is no grouping."""
    row: tuple[tuple[str, str], ...] | None = None
    tables: tuple[str, ...] = ()
    """Names that WITH gave."""
    star: bool = False
    """Its columns are unknown."""
    words: frozenset[str] = frozenset()
    """Labels of the alternative of `statement`."""


class Walk:
    """Writes statements; the same seed, the same statements."""

    def __init__(self, seed: int, hdfs: str = "127.0.0.1:8020", marker: str = "/tmp/walk", snapshots: tuple[str, ...] = ("1",)) -> None:
        self._grammar = spark_grammar()
        self._random = random.Random(seed)
        self._places = {"hdfs": hdfs, "marker": marker}
        self._snapshots = snapshots
        self._scope = Scope()
        self._depth = 0
        self._names = 0
        self.covered: set[tuple[str, str]] = set()

    def statement(self, rule: str = "statement", alternative: Edge | None = None) -> str:
        """Write one statement: of an alternative of `statement`, or of another rule."""
        self._scope, self._depth, self._names = Scope(), 0, 0
        return self._walk(rule, alternative).strip()

    def times(self, average: float) -> int:
        """Return a number at random: the average, rounded up or down."""
        return int(average + self._random.random())

    # ---- The walk.

    def _walk(self, rule: str, alternative: Edge | None = None) -> str:
        path = self._path(rule, alternative)
        labels = [edge.label for edge in path]
        if rule == "statement":
            self._scope = replace(self._scope, words=frozenset("|".join(labels).split("|")))
        with self._deeper():
            return " ".join(filter(None, self._parts(rule, path)))

    def _parts(self, rule: str, path: list[Edge]) -> list[str]:
        labels = [edge.label for edge in path]
        if rule in ("querySpecification", "fromStatement", "dmlStatementNoWith"):
            return self._select(path, labels)
        if rule == "query" and labels[:1] == ["ctes"]:
            # Names that WITH gives count to the end of the query.
            with self._inside(self._scope):
                return self._texts(rule, path)
        if rule == "queryTerm" and len(path) > 1:
            if "operatorPipeRightSide" in labels:
                return [self._piped(path)]
            row = self._scope.row or tuple(self._some_row())
            with self._inside(replace(self._scope, row=row)):
                return self._texts(rule, path)
        if "->" in labels and not self._is(0.1):
            # It is an argument of some functions, and nothing elsewhere.
            return [self._column("num") or "1"]
        if rule == "primaryExpression" and "functionName" in labels:
            return self._call(path, labels)
        return self._texts(rule, path)

    def _texts(self, rule: str, path: list[Edge]) -> list[str]:
        return [self._rule(edge.rule, rule) if edge.rule else self._token(edge.tokens) for edge in path]

    def _path(self, rule: str, alternative: Edge | None) -> list[Edge]:
        grammar, state, path = self._grammar, self._grammar.starts[rule], []
        while state != grammar.stops[rule]:
            edges = grammar.edges[state]
            if alternative in edges:
                edge, alternative = alternative, None
            else:
                edge = edges[0] if len(edges) == 1 else self._chosen(rule, edges)
            assert edge is not None
            if edge.label:
                path.append(edge)
                self.covered.add((rule, edge.label))
            state = edge.target
        return path

    def _chosen(self, rule: str, edges: list[Edge]) -> Edge:
        if self._depth > DEEP:
            return min(edges, key=self._grammar.cost)
        weights = []
        for edge in edges:
            if self._grammar.kinds[edge.target] == LOOP_END:
                weights.append(LOOP)
            else:
                first = self._grammar.first(edge)
                weights.append(WEIGHTS.get(rule, {}).get(first, 1.0 if first else OPTIONAL))
        return self._random.choices(edges, weights)[0]

    def _rule(self, rule: str, parent: str) -> str:
        shape = getattr(self, "_shape_" + re.sub("(?=[A-Z])", "_", rule).lower(), None)
        raw = RAW / 5 if rule in SHAPED else RAW
        if rule in NAMES or (rule == "selectClause" and self._scope.row is not None) or self._depth > DEEP:
            raw = 0
        if shape and not self._is(raw):
            with self._deeper():
                text = shape(parent)
            if text is not None:
                return str(text)
        return self._walk(rule)

    def _token(self, tokens: tuple[str, ...]) -> str:
        token = self._one(tokens)
        return self._word() if token == ANY else SYMBOLS[token] if token.startswith("<") and token.isupper() else token

    def _word(self) -> str:
        """Write what stands where any token may."""
        words = self._scope.words
        if words & {"ADD", "LIST", "REFRESH"}:
            return self._place(self._one(PATHS))
        return self._one((self._one(KEYS), "=", f"'{self._string()}'", "1", "-v", "x", "true"))

    # ---- Chance, places, scopes.

    def _one(self, choices: tuple[str, ...] | list[str]) -> str:
        return self._random.choice(choices)

    def _is(self, share: float) -> bool:
        return self._random.random() < share

    def _place(self, text: str) -> str:
        return text.format(**self._places)

    def _string(self) -> str:
        return self._place(self._one(STRINGS[:8] if self._is(0.4) else STRINGS))

    def _new(self, letter: str) -> str:
        self._names += 1
        return f"{letter}{self._names}"

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1

    @contextmanager
    def _inside(self, scope: Scope) -> Iterator[None]:
        before, self._scope = self._scope, scope
        try:
            yield
        finally:
            self._scope = before

    def _add_relation(self, alias: str, row: Row | None = None) -> None:
        columns = tuple((f"{alias}.{name}", kind) for name, kind in (row or FULL))
        self._scope = replace(self._scope, columns=self._scope.columns + columns)

    # ---- Typed expressions.

    def _column(self, kind: str) -> str | None:
        fitting = [text for text, known in self._scope.columns if known == kind]
        return self._one(fitting) if fitting else None

    def _expression(self, kind: str) -> str:
        """Write an expression of a type: `num`, `str`, `date`, `time`, `bool`, `list`, or what a function takes."""
        if kind == "any":
            kind = self._one(VALUES)
        if kind == "bin":
            return f"binary({self._expression('str')})"
        if kind == "record":
            return f"named_struct('a', {self._expression('num')})"
        if kind not in VALUES:
            return self._one(LITERALS[kind])
        with self._deeper():
            is_deep = self._depth > DEEP - 6
            form = self._random.choices(
                ("column", "literal", "function", "operator", "case", "cast", "aggregate", "subquery", "raw", "trap"),
                (6, 2, *((0,) * 8 if is_deep else (4, 2, 0.7, 0.7, 3 if self._scope.inner is not None else 0, 0.2, 0.6, TRAPPED))),
            )[0]
            text = getattr(self, f"_write_{form}")(kind)
        return str(text) if text is not None else self._one(LITERALS[kind])

    def _write_column(self, kind: str) -> str | None:
        return self._column(kind)

    def _write_literal(self, kind: str) -> str:
        return self._one(LITERALS[kind])

    def _write_function(self, kind: str, functions: Signatures = FUNCTIONS) -> str:
        name, taken = self._random.choice(functions[kind])
        return f"{name}({', '.join(self._expression(part) for part in taken.split(', ') if part)})"

    def _write_aggregate(self, kind: str) -> str:
        assert self._scope.inner is not None
        with self._inside(replace(self._scope, columns=self._scope.inner, inner=None)):
            text = self._write_function(kind, AGGREGATES)
            return f"{text} FILTER (WHERE {self._expression('bool')})" if self._is(0.1) else text

    def _write_operator(self, kind: str) -> str:
        left, right = self._expression(kind), self._expression(kind)
        match kind:
            case "num":
                return f"({left} {self._one(('+', '-', '*', '/', '%'))} {right})"
            case "str":
                return f"{left} || {right}"
            case "date":
                return f"({left} {self._one(('+', '-'))} INTERVAL {self._one(('1 DAY', '2 MONTHS', '1 YEAR'))})"
            case "time":
                return f"({left} {self._one(('+', '-'))} INTERVAL {self._one(('1 DAY', '3 HOURS', '5 MINUTES'))})"
            case "bool":
                return self._condition()
        return f"concat({left}, {right})"

    def _condition(self) -> str:
        kind = self._one(("num", "num", "str", "date", "time"))
        left, right, third = (self._expression(kind) for _ in range(3))
        negation = "NOT " if self._is(0.2) else ""
        text = self._one(("text", "pattern"))
        match self._random.randrange(9):
            case 0 | 1:
                return f"({left} {self._one(('=', '<>', '<', '<=', '>', '>=', '<=>', '!='))} {right})"
            case 2:
                return f"({self._expression('bool')} {self._one(('AND', 'OR'))} {self._expression('bool')})"
            case 3:
                return f"({left} {negation}BETWEEN {right} AND {third})"
            case 4:
                return f"({left} {negation}IN ({right}, {third}))"
            case 5:
                return f"({left} IS {negation}NULL)"
            case 6:
                how = self._one(("LIKE", "ILIKE", "RLIKE"))
                return f"({self._expression('str')} {negation}{how} '{text}%')"
            case 7:
                return f"(NOT {self._expression('bool')})"
        return f"({left} IS {negation}DISTINCT FROM {right})"

    def _write_case(self, kind: str) -> str:
        return f"CASE WHEN {self._expression('bool')} THEN {self._expression(kind)} ELSE {self._expression(kind)} END"

    def _write_cast(self, kind: str) -> str:
        return f"{self._one(('CAST', 'TRY_CAST'))}({self._expression(kind)} AS {TYPE_NAMES[kind]})"

    def _write_subquery(self, kind: str) -> str:
        if kind == "bool":
            form = self._one(("EXISTS (", f"{self._expression('num')} IN ("))
            with self._inside(replace(self._scope, columns=(), inner=None, row=(("q", "num"),))):
                return f"{form}{self._walk('query')})"
        with self._inside(replace(self._scope, columns=(), inner=None)):
            columns = self._relation()
            self._scope = replace(self._scope, columns=(), inner=self._scope.columns)
            return f"(SELECT {self._write_aggregate(kind)} FROM {columns})"

    def _write_raw(self, kind: str) -> str | None:
        # What it gives is a number at best.
        return self._walk("booleanExpression") if kind == "bool" else self._walk("primaryExpression") if kind == "num" else None

    def _write_trap(self, kind: str) -> str:
        return self._place(self._one(FUNCTION_TRAPS))

    def _shape_expression(self, parent: str) -> str | None:
        match parent:
            case "functionName":
                return "'abs'"
            case "identifierReference":
                return f"'{self._table()}'"
            case "catalogIdentifierReference":
                return "'sandbox'"
            case "queryOrganization" | "sortItem":
                return "1"
            case "sampleMethod" | "frameBound":
                return self._one(("1", "2", "5"))
            case "executeImmediate":
                return f"'{self._string()}'"
        return self._expression("any")

    def _shape_boolean_expression(self, parent: str) -> str | None:
        return None if parent == "expression" else self._expression("bool")

    def _shape_value_expression(self, parent: str) -> str | None:
        if parent == "temporalClause":
            return self._one(("current_timestamp()", "'2036-01-01'", "TIMESTAMP '2036-01-01 00:00:00'"))
        return self._expression("num") if parent in ("valueExpression", "predicate", "primaryExpression") else None

    def _shape_primary_expression(self, parent: str) -> str | None:
        return self._column("str") if parent == "hintStatement" else None

    def _call(self, path: list[Edge], labels: list[str]) -> list[str]:
        """Write a call with arguments that fit; what may follow it is walked."""
        end = next(at for at, label in enumerate(labels) if label == ")")
        rest = [edge.label for edge in path[end + 1 :]]
        kind = self._one(VALUES)
        if self._is(TRAPPED * 2):
            return [self._place(self._one(FUNCTION_TRAPS))]
        if "OVER" in rest:
            text = self._one(WINDOWS) if self._is(0.5) else self._write_function(kind, AGGREGATES)
            order = f"ORDER BY {self._column('num') or '1'}"
            part = f"PARTITION BY {self._column('str') or '1'} " if self._is(0.6) else ""
            if self._is(0.8):
                return [f"{text} OVER ({part}{order})"]
            return [text, *self._texts("primaryExpression", path[end + 1 :])]
        if "FILTER" in rest and self._scope.inner is not None:
            with self._inside(replace(self._scope, columns=self._scope.inner, inner=None)):
                return [self._write_function(kind, AGGREGATES), *self._texts("primaryExpression", path[end + 1 :])]
        if rest and self._is(0.3):
            return [self._write_function(kind), *self._texts("primaryExpression", path[end + 1 :])]
        return [self._write_function(kind)]

    # ---- Queries.

    def _some_row(self) -> Row:
        return [(f"r{number}", self._one(VALUES)) for number in range(self._random.randint(1, 3))]

    def _shape_query(self, parent: str) -> str | None:
        scope = replace(self._scope, columns=(), inner=None, star=False)
        if parent in ("predicate", "booleanExpression", "primaryExpression"):
            scope = replace(scope, row=(("q", "num"),))
        with self._inside(scope):
            return self._walk("query")

    def _select(self, path: list[Edge], labels: list[str]) -> list[str]:
        """Write what FROM names first, so that its columns are known; then what groups them; then the rest."""
        if "selectClause" in labels and "fromClause" not in labels and self._is(0.9):
            # What says something about rows is left out where there are none.
            path = [edge for edge in path if edge.label not in ("lateralView", "aggregationClause", "havingClause", "whereClause")]
        if "havingClause" in labels and "aggregationClause" not in labels and self._is(0.9):
            path = [edge for edge in path if edge.label != "havingClause"]
        rules = [edge.rule for edge in path]
        parent = "querySpecification" if "selectClause" in rules else "dmlStatementNoWith"
        texts = [""] * len(path)
        with self._inside(replace(self._scope, columns=(), inner=None, star=False)):
            first = [at for at, rule in enumerate(rules) if rule in ("fromClause", "lateralView")]
            grouped = [at for at, rule in enumerate(rules) if rule == "aggregationClause"]
            for at in first:
                texts[at] = self._rule(path[at].rule, parent)
            if first and "selectClause" in rules and (grouped or self._is(0.15)):
                every = self._scope.columns
                kept = [column for column in every if column[1] != "list"] if grouped else []
                kept = self._random.sample(kept, min(len(kept), self._random.randint(1, 3)))
                self._scope = replace(self._scope, columns=tuple(kept), inner=every)
            for at, edge in enumerate(path):
                if at in first:
                    continue
                scope = self._scope
                if edge.rule == "whereClause" and scope.inner is not None:
                    self._scope = replace(scope, columns=scope.inner, inner=None)
                    texts[at] = self._rule(edge.rule, parent)
                    self._scope = scope
                elif edge.rule == "query" and path[at - 1].label == "(":
                    # The source of MERGE.
                    self._scope = replace(scope, row=tuple(FULL))
                    texts[at] = self._rule(edge.rule, parent)
                    self._scope = scope
                else:
                    texts[at] = self._rule(edge.rule, parent) if edge.rule else self._token(edge.tokens)
        return texts

    def _shape_select_clause(self, parent: str) -> str | None:
        if self._scope.row is None or parent == "operatorPipeRightSide":
            return None
        chosen = ", ".join(f"{self._expression(kind)} AS {name}" for name, kind in self._scope.row)
        return f"SELECT {'DISTINCT ' if self._is(0.1) else ''}{chosen}"

    def _shape_query_primary(self, parent: str) -> str | None:
        if self._scope.row is None:
            return None
        match self._random.randrange(10):
            case 0:
                return self._shape_inline_table(parent)
            case 1:
                return f"({self._walk('query')})"
        return self._walk("querySpecification")

    def _shape_named_expression(self, parent: str) -> str | None:
        if parent == "executeImmediateUsing":
            return None
        if parent in ("aggregationClause", "pivotClause", "watermarkClause"):
            return self._expression("any")
        if self._scope.star or (self._scope.columns and self._scope.inner is None and self._is(0.1)):
            return "*"
        return f"{self._expression('any')} AS {self._new('e')}"

    def _shape_aggregation_clause(self, parent: str) -> str | None:
        columns = [text for text, _ in self._scope.columns]
        if not columns:
            return "GROUP BY ALL"
        listed = ", ".join(columns)
        forms = (
            f"{listed}",
            f"{listed}",
            f"ROLLUP ({listed})",
            f"CUBE ({listed})",
            f"GROUPING SETS (({listed}), ())",
            f"{listed} WITH ROLLUP",
            "ALL",
        )
        return f"GROUP BY {self._one(forms)}"

    def _shape_query_organization(self, parent: str) -> str | None:
        order = self._one(("", "", " ORDER BY 1", " ORDER BY 1 DESC NULLS LAST", " SORT BY 1", " DISTRIBUTE BY 1"))
        if self._scope.row and any(kind == "list" for _, kind in self._scope.row):
            order = ""
        return f"{order} LIMIT {self._random.randint(1, 5)}{' OFFSET 1' if self._is(0.1) else ''}"

    def _shape_named_query(self, parent: str) -> str | None:
        name = self._new("c")
        with self._inside(replace(self._scope, columns=(), inner=None, row=tuple(FULL))):
            # Without a WITH of its own: Spark's analysis of such nests takes minutes.
            text = f"{name} AS ({self._walk('queryTerm')} LIMIT 3)"
        self._scope = replace(self._scope, tables=(*self._scope.tables, name))
        return text

    def _piped(self, path: list[Edge]) -> str:
        texts = [f"{self._one(('FROM', 'TABLE'))} {self._table()}"]
        columns = tuple(FULL)
        for edge in path:
            if edge.rule == "operatorPipeRightSide":
                with self._inside(replace(self._scope, columns=columns, inner=None, row=None)):
                    texts.append("|> " + self._walk("operatorPipeRightSide"))
        return " ".join(texts)

    def _relation(self) -> str:
        """Write a relation under a new alias, and add its columns."""
        alias = self._new("x")
        self._add_relation(alias)
        return f"{self._table()} AS {alias}"

    def _shape_relation_primary(self, parent: str) -> str | None:
        alias, names = self._new("x"), ", ".join(name for name, _ in FULL)
        form = self._random.choices(("table", "table at", "query", "values", "range", "function"), (6, 0.6, 1.2, 1, 0.8, 0.6))[0]
        match form:
            case "table":
                text = f"{self._table()} AS {alias}"
            case "table at":
                moment = self._one((f"VERSION AS OF {self._one(self._snapshots)}", "TIMESTAMP AS OF current_timestamp()"))
                text = f"ops.walk {moment} AS {alias}"
            case "query":
                with self._inside(replace(self._scope, columns=(), inner=None, row=tuple(FULL))):
                    text = f"({self._walk('query')}) AS {alias} ({names})"
            case "values":
                with self._inside(replace(self._scope, columns=(), inner=None)):
                    values = ", ".join(self._one(LITERALS[kind]) for _, kind in FULL)
                    text = f"(VALUES ({values})) AS {alias} ({names})"
            case "range":
                self._add_relation(alias, [("id", "num")])
                return f"range({self._random.randint(1, 9)}) AS {alias} (id)"
            case _:
                return f"{self._place(self._one(TABLE_FUNCTIONS if self._is(TRAPPED) else TABLE_FUNCTIONS[:7]))} AS {alias}"
        self._add_relation(alias)
        return text

    def _shape_join_criteria(self, parent: str) -> str | None:
        return self._one(("USING (id)", f"ON {self._condition()}", f"ON {self._condition()}"))

    def _shape_lateral_view(self, parent: str) -> str | None:
        alias = self._new("v")
        listed = self._expression("list")
        self._scope = replace(self._scope, columns=(*self._scope.columns, (f"{alias}.item", "num")))
        return f"LATERAL VIEW {self._one(('', 'OUTER '))}explode({listed}) {alias} AS item"

    def _shape_hint_statement(self, parent: str) -> str | None:
        return self._one(("BROADCAST(x1)", "MERGE(x1)", "COALESCE(1)", "REPARTITION(2)", "REBALANCE", "SHUFFLE_HASH(x1)"))

    def _shape_sample_method(self, parent: str) -> str | None:
        return self._one(("50 PERCENT", "3 ROWS", "BUCKET 1 OUT OF 2"))

    def _shape_temporal_clause(self, parent: str) -> str | None:
        return self._one((f"VERSION AS OF {self._one(self._snapshots)}", "TIMESTAMP AS OF current_timestamp()"))

    def _shape_pivot_clause(self, parent: str) -> str | None:
        self._scope = replace(self._scope, star=True, columns=())
        return "PIVOT (sum(amount) FOR name IN ('a', 'b'))"

    def _shape_unpivot_clause(self, parent: str) -> str | None:
        self._scope = replace(self._scope, star=True, columns=())
        return "UNPIVOT (value FOR which IN (id, amount))"

    def _shape_inline_table(self, parent: str) -> str | None:
        if self._scope.row:
            return f"VALUES ({', '.join(self._one(LITERALS[kind]) for _, kind in self._scope.row)})"
        return f"VALUES ({self._expression('num')}, {self._expression('str')}), (2, 'b')"

    def _shape_window_clause(self, parent: str) -> str | None:
        return "WINDOW w AS (PARTITION BY 1 ORDER BY 1)"

    def _shape_join_type(self, parent: str) -> str | None:
        return self._one(("", "INNER", "LEFT", "RIGHT OUTER", "FULL", "CROSS" if parent != "joinRelation" else "LEFT OUTER"))

    def _shape_window_spec(self, parent: str) -> str | None:
        return f"(PARTITION BY {self._column('str') or '1'} ORDER BY {self._column('num') or '1'})"

    def _shape_insert_into(self, parent: str) -> str | None:
        target, form = self._written(), self._random.randrange(5)
        row, columns = FULL, ""
        if form == 0:
            row = self._random.sample(FULL, self._random.randint(1, 4))
            columns = f"({', '.join(name for name, _ in row)})"
        elif form == 1:
            columns = "BY NAME"
        self._scope = replace(self._scope, row=tuple(row))
        how = self._one(("INTO", "INTO", "INTO TABLE", "OVERWRITE"))
        return f"INSERT {how} {target} {columns}"

    def _shape_error_capturing_not(self, parent: str) -> str | None:
        return "NOT"

    def _shape_matched_clause(self, parent: str) -> str | None:
        return f"WHEN MATCHED AND {self._condition()} THEN {self._walk('matchedAction')}"

    def _shape_not_matched_clause(self, parent: str) -> str | None:
        return f"WHEN NOT MATCHED AND 1 < {self._random.randrange(3)} THEN {self._walk('notMatchedAction')}"

    def _shape_assignment(self, parent: str) -> str | None:
        name, kind = self._random.choice(FULL)
        owner = next((text.split(".")[0] for text, _ in self._scope.columns), "")
        return f"{owner + '.' if owner else ''}{name} = {self._expression(kind)}"

    def _shape_not_matched_action(self, parent: str) -> str | None:
        listed = self._random.sample(FULL, self._random.randint(1, 3))
        # Of the two relations, what is inserted is known to the second alone.
        second = tuple(column for column in self._scope.columns if column[0].split(".")[0] == self._scope.columns[-1][0].split(".")[0])
        with self._inside(replace(self._scope, columns=second)):
            values = ", ".join(self._expression(kind) for _, kind in listed)
        return self._one(("INSERT *", f"INSERT ({', '.join(name for name, _ in listed)}) VALUES ({values})"))

    # ---- Names.

    def _table(self) -> str:
        if self._is(TRAPPED):
            return self._place(self._one(TRAPS))
        if self._scope.tables and self._is(0.4):
            return self._one(self._scope.tables)
        return self._one(READ)

    def _written(self) -> str:
        return self._place(self._one(TRAPS)) if self._is(TRAPPED) else self._one(("ops.walk", *WRITTEN * 6))

    def _shape_identifier_reference(self, parent: str) -> str | None:
        words = self._scope.words
        if parent in ("relationPrimary", "queryPrimary", "functionTableSubqueryArgument"):
            return self._table()
        if parent == "dmlStatementNoWith":
            return self._written()
        if words & {"namespace", "USE", "CATALOGS", "TABLES", "VIEWS", "FUNCTIONS", "PROCEDURES"} and parent == "statement":
            if words & {"CREATE", "DROP", "ALTER", "COMMENT"}:
                return self._one(("sandbox.walk_space", "sandbox.walk_space", *SPACES[:3], *TRAP_SPACES))
            return self._one(SPACES if self._is(0.8) else TRAP_SPACES)
        if words & {"FUNCTION", "PROCEDURE", "CALL"}:
            return self._one(
                ("walk_function", "abs", "sandbox.system.rewrite_data_files", "spark_catalog.system.rollback_to_timestamp", "reflect")
            )
        if words & {"variable", "DECLARE"}:
            return self._one(("walk_variable", "session.walk_variable", "system.session.walk_variable"))
        if "VIEW" in words and "TABLE" not in words:
            return self._one((*VIEWS, "ops.walk_view", "sandbox.walk.view"))
        if parent in ("createTableHeader", "replaceTableHeader", "createPipelineDatasetHeader") or (
            words & {"DROP"} and "ALTER" not in words
        ):
            return self._one(MADE) if self._is(0.85) else self._written()
        if words & {"ALTER", "TRUNCATE", "COMMENT"}:
            return "sandbox.walk.changed" if self._is(0.8) else self._written()
        return self._table()

    def _shape_catalog_identifier_reference(self, parent: str) -> str | None:
        return self._one(("sandbox", "spark_catalog", "unknown", "'sandbox'"))

    def _shape_table_identifier(self, parent: str) -> str | None:
        return self._one((*VIEWS, "ops.walk", "walk_made", "ops.walk_files"))

    def _shape_multipart_identifier(self, parent: str) -> str | None:
        words = self._scope.words
        match parent:
            case "tableProvider":
                return self._one(PROVIDERS)
            case "collateClause":
                return self._one(("UTF8_BINARY", "UTF8_LCASE", "UNICODE"))
            case "streamRelationPrimary" | "referenceSpec":
                return self._table()
            case "qualifiedColTypeWithPosition":
                return self._new("new")
            case "identifierReference":
                return self._table()
        if parent == "statement" and words & {"namespaces", "COLUMNS", "FUNCTIONS"}:
            return self._one(SPACES)
        if "RENAME" in words and "TO" in words and "COLUMN" not in words:
            return self._one(("sandbox.walk.made1", "walk.renamed", "ops.renamed"))
        if words & {"variable", "DECLARE"}:
            return "walk_variable"
        return self._one(tuple(COLUMNS))

    def _shape_multipart_identifier_list(self, parent: str) -> str | None:
        return ", ".join(self._random.sample(tuple(COLUMNS), self._random.randint(1, 2)))

    def _shape_identifier(self, parent: str) -> str | None:
        match parent:
            case "primaryExpression":
                return self._column("num") or "1"
            case "transform":
                return self._one(("bucket", "days", "truncate", "months", "years"))
            case "qualifiedName":
                return "explode"
            case "collationSpec":
                return self._one(("UTF8_BINARY", "UTF8_LCASE"))
            case "unpivotValueColumn" | "unpivotNameColumn":
                return self._new("u")
        return self._one(tuple(COLUMNS))

    def _shape_simple_identifier(self, parent: str) -> str | None:
        words = self._scope.words
        if words & {"ADD", "LIST"}:
            return self._one(("JAR", "FILE", "ARCHIVE", "JARS", "FILES", "ARCHIVES"))
        match parent:
            case "resource":
                return self._one(("JAR", "FILE"))
            case "fileFormat":
                return self._one(("PARQUET", "ORC", "TEXTFILE"))
            case "primaryExpression":
                return self._one(("YEAR", "DAY", "HOUR"))
        return self._one(("SYSTEM", "USER", "ALL", "NOSCAN")) if words & {"FUNCTIONS", "ANALYZE"} else "x1"

    def _shape_strict_identifier(self, parent: str) -> str | None:
        return "walk_label" if parent in ("beginLabel", "endLabel", "leaveStatement", "iterateStatement") else self._new("x")

    def _shape_error_capturing_identifier(self, parent: str) -> str | None:
        match parent:
            case (
                "namedExpression"
                | "namedQuery"
                | "colType"
                | "colDefinition"
                | "complexColType"
                | "statement"
                | "tableConstraintDefinition"
            ):
                return self._new("n")
            case "propertyKey":
                return self._one(KEYS)
            case "windowSpec" | "namedWindow":
                return "w"
            case "multipartIdentifier" | "tableIdentifier":
                return "ops"
        return self._one(tuple(COLUMNS))

    def _shape_identifier_list(self, parent: str) -> str | None:
        if parent == "namedExpression":
            return None
        return f"({', '.join(self._random.sample(tuple(COLUMNS), self._random.randint(1, 3)))})"

    def _shape_identifier_comment_list(self, parent: str) -> str | None:
        return None if self._scope.row is None else f"({', '.join(name for name, _ in self._scope.row)})"

    def _shape_table_alias(self, parent: str) -> str | None:
        alias = self._new("x")
        self._add_relation(alias)
        return f"AS {alias}"

    def _shape_function_name(self, parent: str) -> str | None:
        return self._one(("abs", "upper", "range", "explode"))

    def _shape_property_key(self, parent: str) -> str | None:
        key = self._one(KEYS)
        return f"`{key}`" if "-" in key else key

    def _shape_property_key_or_string_lit(self, parent: str) -> str | None:
        return f"'{self._one(KEYS)}'"

    def _shape_quoted_identifier(self, parent: str) -> str | None:
        return f"`{self._one(KEYS) if parent == 'configKey' else 'id'}`"

    def _shape_back_quoted_identifier(self, parent: str) -> str | None:
        return f"`{self._one(('true', 'UTC', '1', 'org.apache.iceberg.spark.SparkCatalog'))}`"

    def _shape_data_type(self, parent: str) -> str | None:
        return self._one(NEW_TYPES)

    def _shape_single_string_lit_without_marker(self, parent: str) -> str | None:
        return f"'{self._one(('2026-01-02', '2026-01-02', '1', 'AB'))}'" if parent == "constant" else f"'{self._string()}'"

    def _shape_string_lit(self, parent: str) -> str | None:
        return f"'{self._string()}'"

    def _shape_constant(self, parent: str) -> str | None:
        return self._one(LITERALS[self._one(("num", "num", "str", "bool"))])

    def _shape_literal_type(self, parent: str) -> str | None:
        return self._one(("DATE", "TIMESTAMP", "X"))

    def _shape_integer_value(self, parent: str) -> str | None:
        return self._one(("1", "2", "4"))

    def _shape_version(self, parent: str) -> str | None:
        return self._one(self._snapshots)

    def _shape_interval(self, parent: str) -> str | None:
        return self._one(("INTERVAL 1 DAY", "INTERVAL '1' HOUR", "INTERVAL '1-2' YEAR TO MONTH"))

    def _shape_describe_func_name(self, parent: str) -> str | None:
        return self._one(("abs", "reflect", "explode", "from_xml", "nothing"))


def alternatives() -> list[tuple[str, Edge | None, str]]:
    """Return each kind of statement: its rule, where its walk begins, and its shortest form."""
    grammar = spark_grammar()
    listed: list[tuple[str, Edge | None, str]] = [
        (rule, edge, grammar.shortest(edge)) for rule in ("statement", "setResetStatement") for edge in grammar.alternatives(rule)
    ]
    return [*listed, ("singleCompoundStatement", None, "BEGIN compoundBody END")]


FREQUENT = {"query": 3.0, "dmlStatementNoWith": 1.6, "createTableHeader createTableClauses": 0.1}
"""How many of a kind come with each statement of the others."""
EXPLAINED = 0.8
"""Share of them that are explained only, which analyses a statement and reads nothing."""


def statements(seed: int, **names: object) -> Iterator[tuple[str, str]]:
    """Write statements without end: of each kind one after the other, and in between those of which there shall be many.

    Yields
    ------
    tuple
        The kind's shortest form, and the statement.
    """
    walk = Walk(seed, **names)  # type: ignore[arg-type]
    kinds = alternatives()
    while True:
        for rule, edge, shortest in kinds:
            yield shortest, walk.statement(rule, edge)
            for other_rule, other, form in kinds:
                for _ in range(walk.times(FREQUENT.get(form, 0))):
                    text = walk.statement(other_rule, other)
                    yield ("EXPLAIN statement", f"EXPLAIN {text}") if walk.times(EXPLAINED) else (form, text)
