// The controller's configuration: what casc.yaml defines for pipelines, and the rules that it and plugins.txt keep.

import org.yaml.snakeyaml.Yaml

class Controller {
    private static final String FILE = /\/run\/secrets\/[a-z\/-]+/
    private static final String SECRET = /\$\{(readFile|readFileBase64):$FILE\}|\$\{trim:\$\{readFile:$FILE\}\}/
    final Offered offered = new Offered()
    /** Path of the pipeline's file, by job. */
    final Map<String, String> jobs = [:]
    /** Jobs that are built once when the controller starts, so that their triggers are known. */
    final List<String> queued = []

    /** Reads casc.yaml; throws Invalid at its first mistake. */
    Controller(String text) {
        Map casc = new Yaml().load(text) as Map
        ['jenkins', 'credentials', 'unclassified', 'jobs'].each { if (!casc[it]) throw new Invalid(0, "casc.yaml has no `$it`") }
        casc.credentials.system.domainCredentials*.credentials.flatten().each { Map entry -> credential(entry) }
        offered.resources.addAll(casc.unclassified.lockableResourcesManager?.declaredResources*.name ?: [])
        casc.jenkins.nodes.each { node -> offered.labels.addAll(node.permanent.labelString.split(' ')) }
        if (casc.jenkins.numExecutors != 0) throw new Invalid(0, 'the controller itself must run no build: numExecutors is not 0')
        def realm = casc.jenkins.securityRealm?.local
        if (!realm || realm.allowsSignup) throw new Invalid(0, 'anybody may sign up: securityRealm.local.allowsSignup must be false')
        realm.users.each { secret("password of ${it.id}", it.password) }
        casc.jobs.each { Map job -> define(job.script as String) }
    }

    private void credential(Map entry) {
        String kind = entry.keySet().first()
        Map fields = entry[kind] as Map
        Map<String, String> secrets = [file: fields.secretBytes, basicSSHUserPrivateKey: fields.privateKeySource?.directEntry?.privateKey]
        if (!secrets.containsKey(kind)) throw new Invalid(0, "credentials '${fields.id}': $kind is not known; known are ${secrets.keySet().join(', ')}")
        secret("credentials '${fields.id}'", secrets[kind])
        offered.credentials << (fields.id as String)
    }

    /** A secret is read from a mounted file, never written here. */
    private static void secret(String what, value) {
        if (!(value ==~ SECRET)) throw new Invalid(0, "$what must come from a file of /run/secrets")
    }

    private void define(String script) {
        Script parsed = new GroovyShell().parse(script)
        parsed.metaClass.pipelineJob = { String name, Closure body -> jobs[name] = new JobDsl().read(body) }
        parsed.metaClass.queue = { String name -> queued << name }
        parsed.run()
    }

    /** Throws Invalid where a plugin has no exact version, or one that is used is not there. */
    static void checkPlugins(List<String> lines, Set<String> used) {
        Map<String, String> pinned = lines.findAll { it && !it.startsWith('#') }.collectEntries { String line ->
            if (!(line ==~ /[a-z0-9-]+:\d[A-Za-z0-9._-]*/)) throw new Invalid(0, "plugins.txt: '$line' is not NAME:VERSION")
            line.split(':') as List
        }
        Set<String> missing = used - pinned.keySet()
        if (missing) throw new Invalid(0, "plugins.txt lacks ${missing.join(', ')}")
    }
}

/** The part of Job DSL that defines a pipeline of this repository; anything else is an error. */
class JobDsl {
    private static final List<String> BLOCKS = ['definition', 'cpsScm', 'scm', 'git', 'remote']
    private String path

    String read(Closure body) {
        nested(body)
        path
    }

    private void nested(Closure body) {
        body.delegate = this
        body.resolveStrategy = Closure.DELEGATE_FIRST
        body()
    }

    void scriptPath(String path) { this.path = path }

    void url(String url) { }

    void branch(String name) { }

    void description(String text) { }

    void methodMissing(String name, args) {
        if (!(name in BLOCKS) || args.size() != 1 || !(args[0] instanceof Closure)) throw new Invalid(0, "jobs: `$name` is not known")
        nested(args[0] as Closure)
    }
}
