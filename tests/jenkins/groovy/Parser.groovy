// Reads a declarative pipeline as data: calls with constants and blocks. Anything else in it would be logic, and is an error.

import org.codehaus.groovy.ast.expr.BinaryExpression
import org.codehaus.groovy.ast.expr.ClosureExpression
import org.codehaus.groovy.ast.expr.ConstantExpression
import org.codehaus.groovy.ast.expr.Expression
import org.codehaus.groovy.ast.expr.ListExpression
import org.codehaus.groovy.ast.expr.MapExpression
import org.codehaus.groovy.ast.expr.MethodCallExpression
import org.codehaus.groovy.ast.expr.TupleExpression
import org.codehaus.groovy.ast.expr.VariableExpression
import org.codehaus.groovy.ast.stmt.ExpressionStatement
import org.codehaus.groovy.ast.stmt.Statement
import org.codehaus.groovy.control.CompilationUnit
import org.codehaus.groovy.control.CompilationFailedException
import org.codehaus.groovy.control.Phases

/** What is wrong with a pipeline or the controller's configuration, and where. */
class Invalid extends RuntimeException {
    Invalid(int line, String what) { super(line ? "line $line: $what" : what) }
}

/** One call: `name(values, key: value) { block }`; a value is a constant, a list of constants or a call. */
class Call {
    String name
    int line
    List values = []
    Map<String, Object> named = [:]
    List<Call> block
    /** The call's first value as it is written, quotes included. */
    String written = ''
    boolean isAssignment

    Call only(String wanted) { block?.find { it.name == wanted } }

    List<Call> all(String wanted) { (block ?: []).findAll { it.name == wanted } }
}

class Parser {
    private final List<String> lines

    private Parser(String text) { lines = text.readLines() }

    /** Returns the calls of a file's top level. */
    static List<Call> parse(String text) {
        CompilationUnit unit = new CompilationUnit()
        unit.addSource('Jenkinsfile', text)
        try {
            unit.compile(Phases.CONVERSION)
        } catch (CompilationFailedException error) {
            throw new Invalid(0, "not Groovy: ${error.message.readLines().find { it.contains('@ line') } ?: error.message}")
        }
        def module = unit.AST.modules[0]
        if (module.imports || module.methods || module.classes.size() > 1) throw new Invalid(1, 'imports, methods and classes are logic')
        Parser parser = new Parser(text)
        module.statementBlock.statements.collect { parser.read(it) }
    }

    private Call read(Statement statement) {
        if (!(statement instanceof ExpressionStatement)) throw logic(statement)
        Expression expression = statement.expression
        if (expression.class == BinaryExpression && expression.operation.text == '=' && expression.leftExpression instanceof VariableExpression) {
            return new Call(name: expression.leftExpression.text, line: statement.lineNumber, isAssignment: true,
                            values: [value(expression.rightExpression)], written: source(expression.rightExpression))
        }
        if (!(expression instanceof MethodCallExpression)) throw logic(statement)
        made(expression)
    }

    private Call made(MethodCallExpression expression) {
        if (!expression.implicitThis || !(expression.method instanceof ConstantExpression)) throw logic(expression)
        Call call = new Call(name: expression.methodAsString, line: expression.lineNumber)
        ((TupleExpression) expression.arguments).expressions.each { Expression argument ->
            if (argument instanceof ClosureExpression) {
                call.block = argument.code.statements.collect { read(it) }
            } else if (argument instanceof MapExpression) {
                argument.mapEntryExpressions.each { call.named[value(it.keyExpression) as String] = value(it.valueExpression) }
            } else {
                call.written = call.written ?: source(argument)
                call.values << value(argument)
            }
        }
        call
    }

    private Object value(Expression expression) {
        switch (expression) {
            case ConstantExpression: return expression.value
            case ListExpression: return expression.expressions.collect { value(it) }
            case MethodCallExpression: return made(expression)
            case VariableExpression: if (expression.name in ['any', 'none']) return expression.name
            default: throw logic(expression)
        }
    }

    private String source(Expression expression) {
        if (expression.lineNumber != expression.lastLineNumber) return lines[expression.lineNumber - 1].substring(expression.columnNumber - 1)
        lines[expression.lineNumber - 1].substring(expression.columnNumber - 1, expression.lastColumnNumber - 1)
    }

    private static Invalid logic(node) {
        new Invalid(node.lineNumber, "`${node.text}` is logic; a pipeline holds constants only, what decides belongs into bash/")
    }
}
