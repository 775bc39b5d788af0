// The declarative pipelines of this repository: what they may hold (a closed list), and the rules that they keep.

/** What a controller offers to pipelines: ids of credentials, names of lockable resources, labels of agents. */
class Offered {
    Set<String> credentials = []
    Set<String> resources = []
    Set<String> labels = []
}

class Pipeline {
    /** Known calls by where they stand: the plugin that brings them (null: Jenkins itself, or Pipeline) and what they take. */
    static final Map<String, Map<String, List>> KNOWN = [
        pipeline: [agent: [null], parameters: [null], triggers: [null], options: [null], environment: [null], stages: [null], post: [null]],
        stages: [stage: [null, String]],
        stage: [options: [null], environment: [null], steps: [null]],
        agent: [label: [null, String]],
        parameters: [
            string: [null, [name: String, defaultValue: String, trim: Boolean, description: String]],
            booleanParam: [null, [name: String, defaultValue: Boolean, description: String]],
            choice: [null, [name: String, choices: List, description: String]],
        ],
        triggers: [cron: [null, String], pollSCM: [null, String]],
        options: [
            disableConcurrentBuilds: [null, [abortPrevious: Boolean]],
            lock: ['lockable-resources', [resource: String]],
            timeout: [null, [time: Integer, unit: String]],
            timestamps: ['timestamper', [:]],
            buildDiscarder: [null, Call],
            retry: [null, Integer],
        ],
        buildDiscarder: [logRotator: [null, [numToKeepStr: String, artifactNumToKeepStr: String]]],
        steps: [sh: [null, String]],
        post: [always: [null], success: [null], failure: [null], unsuccessful: [null], cleanup: [null]],
        after: [
            sh: [null, String],
            archiveArtifacts: [null, [artifacts: String, allowEmptyArchive: Boolean]],
            junit: ['junit', [testResults: String, allowEmptyResults: Boolean]],
        ],
        value: [credentials: ['credentials-binding', String]],
    ]
    static final List<String> NEEDED_OPTIONS = ['disableConcurrentBuilds', 'timeout', 'timestamps', 'buildDiscarder']
    /** Verbs that write what a reconciliation compares: one build at a time, and compared before anything is made of it. */
    static final List<String> LOADS = ['load', 'transform']
    static final List<String> UNITS = ['SECONDS', 'MINUTES', 'HOURS', 'DAYS']

    final Call root
    /** Plugins that its calls come from. */
    final Set<String> plugins = ['workflow-aggregator', 'git'] as Set
    private final Offered offered
    private final File project
    private final Set<String> used = []

    /** Reads and checks a pipeline; throws Invalid at its first mistake. */
    Pipeline(String text, Offered offered, File project) {
        this.offered = offered
        this.project = project
        List<Call> top = Parser.parse(text)
        if (top*.name != ['pipeline']) throw new Invalid(1, 'a file holds one `pipeline { }` and nothing else')
        root = top[0]
        check()
    }

    List<Call> getParameters() { root.only('parameters')?.block ?: [] }

    private void check() {
        known('pipeline', root.block)
        ['agent', 'options', 'stages', 'post'].each { if (!root.only(it)) throw new Invalid(root.line, "`$it` is missing") }
        root.block.groupBy { it.name }.values().findAll { it.size() > 1 }.each { throw new Invalid(it[1].line, "`${it[1].name}` stands twice") }
        agent(root.only('agent'))
        if (root.only('parameters')) known('parameters', parameters)
        root.only('triggers')?.with {
            known('triggers', it.block)
            it.block.each { cron -> Cron.check(cron.values[0], cron.line) }
        }
        options(root.only('options'))
        NEEDED_OPTIONS.each { if (!root.only('options').only(it)) throw new Invalid(root.only('options').line, "option `$it` is missing") }
        environment(root.only('environment'))
        stages(root.only('stages'))
        known('post', root.only('post').block)
        root.only('post').block.each { condition -> known('after', condition.block); condition.all('sh').each { shell(it) } }
        parameters.each {
            if (!(it.named.name in used + 'DRY_RUN')) throw new Invalid(it.line, "parameter ${it.named.name} is used by no stage")
        }
    }

    private void known(String where, List<Call> calls) {
        if (!calls) throw new Invalid(root.line, "`$where` is empty")
        calls.each { Call call ->
            List entry = call.isAssignment ? null : KNOWN[where][call.name]
            if (!entry) throw new Invalid(call.line, "`${call.name}` is not known in `$where`; known are ${KNOWN[where].keySet().join(', ')}")
            if (entry[0]) plugins << entry[0]
            takes(call, entry.size() > 1 ? entry[1] : [:])
        }
    }

    private static void takes(Call call, Object wanted) {
        boolean isRight = wanted instanceof Map
            ? !call.values && call.named.every { name, value -> wanted[name]?.isInstance(value) }
            : call.values.size() == 1 && !call.named && wanted.isInstance(call.values[0])
        if (!isRight) {
            String told = wanted instanceof Map ? wanted.collect { "${it.key}: ${it.value.simpleName}" }.join(', ') ?: 'nothing' : wanted.simpleName
            throw new Invalid(call.line, "`${call.name}` takes $told, not ${call.values + call.named}")
        }
    }

    private void agent(Call agent) {
        known('agent', agent.block)
        String label = agent.only('label').values[0]
        if (!(label in offered.labels)) throw new Invalid(agent.line, "no agent has the label '$label'; there are ${offered.labels.join(', ')}")
    }

    private void options(Call options) {
        if (!options) return
        known('options', options.block)
        Call time = options.only('timeout'), lock = options.only('lock'), kept = options.only('buildDiscarder')
        if (time && !(time.named.unit in UNITS)) throw new Invalid(time.line, "`timeout` has no unit ${time.named.unit}; units are ${UNITS.join(', ')}")
        if (lock && !(lock.named.resource in offered.resources)) {
            throw new Invalid(lock.line, "resource '${lock.named.resource}' is not defined; there are ${offered.resources.join(', ')}")
        }
        if (kept) known('buildDiscarder', kept.values)
    }

    private void environment(Call environment) {
        (environment?.block ?: []).each { Call entry ->
            if (!entry.isAssignment || !(entry.name ==~ /[A-Z][A-Z0-9_]*/)) throw new Invalid(entry.line, '`environment` holds NAME = value only')
            if (!(entry.values[0] instanceof Call)) return
            known('value', entry.values)
            String id = entry.values[0].values[0]
            if (!(id in offered.credentials)) {
                throw new Invalid(entry.line, "credentials '$id' are not defined; there are ${offered.credentials.join(', ')}")
            }
        }
    }

    private void stages(Call stages) {
        known('stages', stages.block)
        stages.block.countBy { it.values[0] }.each { name, count -> if (count > 1) throw new Invalid(stages.line, "stage '$name' stands twice") }
        stages.block.each { Call stage ->
            known('stage', stage.block)
            options(stage.only('options'))
            environment(stage.only('environment'))
            List<Call> steps = stage.only('steps')?.block ?: []
            known('steps', steps)
            if (steps.size() != 1) throw new Invalid(stage.line, "stage '${stage.values[0]}' has ${steps.size()} steps; it has one, which calls a verb")
            shell(steps[0])
        }
        List<String> verbs = stages.block.collect { it.only('steps').block[0].values[0].tokenize(' ')[1] }
        verbs.findIndexValues { it in LOADS }.each { at ->
            Call stage = stages.block[at as int]
            if (verbs[at + 1 as int] != 'reconcile') throw new Invalid(stage.line, "stage '${stage.values[0]}' loads, and the next one does not reconcile")
            if (!root.only('options').only('lock')) throw new Invalid(stage.line, "stage '${stage.values[0]}' loads, and there is no lock")
        }
    }

    /** One verb, single-quoted so that Groovy puts nothing into it; its words in capitals are declared parameters. */
    private void shell(Call step) {
        if (!(step.written ==~ /'bash\/[a-z_]+\.sh( [A-Za-z0-9_.\/:=-]+)*'/)) {
            throw new Invalid(step.line, "`sh ${step.written}` is not one verb of bash/ in single quotes")
        }
        List<String> words = step.values[0].split(' ')
        List<String> scripts = [words[0]]
        if (words[0] == 'bash/pipeline.sh' && words[1] != 'failure') scripts << "bash/${words[1]}.sh".toString()
        scripts.each { if (!new File(project, it).canExecute()) throw new Invalid(step.line, "there is no program $it") }
        words.findAll { it ==~ /[A-Z_]+/ }.each { word ->
            if (!(word in parameters*.named*.name)) throw new Invalid(step.line, "parameter $word is not declared")
            used << word
        }
    }
}

/** Jenkins' cron: five fields of numbers, ranges, lists, steps and H, or an alias. */
class Cron {
    static final List<List<Integer>> BOUNDS = [[0, 59], [0, 23], [1, 31], [1, 12], [0, 7]]
    static final List<String> ALIASES = ['@hourly', '@daily', '@midnight', '@weekly', '@monthly', '@yearly', '@annually']

    static void check(String text, int line) {
        if (text in ALIASES) return
        List<String> fields = text.trim().split(/\s+/)
        if (fields.size() != 5) throw new Invalid(line, "cron '$text' has ${fields.size()} fields, not 5")
        fields.eachWithIndex { String field, int at ->
            field.split(',', -1).each { String part ->
                def found = part =~ /(?:\*|H(?:\((\d+)-(\d+)\))?|(\d+)(?:-(\d+))?)(?:\/([1-9]\d*))?/
                if (!found.matches()) throw new Invalid(line, "cron '$text': '$part' is no field")
                (1..4).collect { found.group(it) }.findAll().each {
                    if (!((it as int) in (BOUNDS[at][0]..BOUNDS[at][1]))) throw new Invalid(line, "cron '$text': $it is not in ${BOUNDS[at].join('-')}")
                }
            }
        }
    }
}
