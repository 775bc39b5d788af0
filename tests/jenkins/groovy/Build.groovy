// A build of a pipeline: stages in order, each `sh` a real process, then the post steps. An emulation of Jenkins, not Jenkins.

import java.nio.file.FileSystems
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardCopyOption
import java.util.concurrent.TimeUnit

class Build {
    Pipeline pipeline
    String job
    int number = 1
    /** The checkout in which verbs run. */
    File workspace
    /** Where archived files go. */
    File archive
    /** What somebody who starts the build has entered; the others have their defaults. */
    Map<String, String> given = [:]
    /** Files of credentials by id. */
    Map<String, String> credentials = [:]
    PrintStream console = System.out

    String result = 'SUCCESS'
    /** How each stage ended, in order: SUCCESS, FAILURE, ABORTED or NOT_BUILT. */
    final Map<String, String> stages = [:]
    private long deadline

    private static class Failed extends RuntimeException { Failed(String what) { super(what) } }
    private static class Stopped extends RuntimeException { Stopped(String what) { super(what) } }

    Build run() {
        Map<String, String> environment = [
            JOB_NAME: job, BUILD_NUMBER: "$number".toString(), BUILD_TAG: "jenkins-$job-$number".toString(), WORKSPACE: workspace.path, CI: 'true',
        ] + parameters() + values(pipeline.root.only('environment'))
        Call time = pipeline.root.only('options').only('timeout')
        deadline = System.currentTimeMillis() + TimeUnit.valueOf(time.named.unit).toMillis(time.named.time)
        pipeline.root.only('stages').block.each { stage(it, environment) }
        deadline = Long.MAX_VALUE
        pipeline.root.only('post').block.sort(false) { ['always', 'failure', 'success', 'unsuccessful', 'cleanup'].indexOf(it.name) }.each { condition ->
            if (applies(condition.name)) after(condition, environment)
        }
        console.println "Finished: $result"
        this
    }

    private Map<String, String> parameters() {
        List<String> names = pipeline.parameters*.named*.name
        given.keySet().each { if (!(it in names)) throw new Invalid(0, "the pipeline has no parameter $it") }
        pipeline.parameters.collectEntries { parameter ->
            List choices = parameter.named.choices
            String value = given.getOrDefault(parameter.named.name, (choices ? choices[0] : parameter.named.defaultValue).toString())
            if (choices && !(value in choices)) throw new Invalid(0, "parameter ${parameter.named.name} is none of ${choices.join(', ')}")
            [parameter.named.name, parameter.named.trim ? value.trim() : value]
        }
    }

    private Map<String, String> values(Call environment) {
        (environment?.block ?: []).collectEntries { entry ->
            def value = entry.values[0]
            if (value instanceof Call && !credentials[value.values[0]]) throw new Invalid(0, "credentials '${value.values[0]}' are given no file")
            [entry.name, value instanceof Call ? credentials[value.values[0]] : value.toString()]
        }
    }

    private void stage(Call stage, Map<String, String> environment) {
        String name = stage.values[0]
        stages[name] = 'NOT_BUILT'
        if (result != 'SUCCESS') return
        console.println "[Pipeline] stage $name"
        int attempts = stage.only('options')?.only('retry')?.values?.first() ?: 1
        for (int attempt = 1; ; attempt++) {
            try {
                shell(stage.only('steps').block[0], environment + values(stage.only('environment')) + [STAGE_NAME: name])
                stages[name] = 'SUCCESS'
                return
            } catch (Failed error) {
                console.println "ERROR: ${error.message}"
                if (attempt < attempts) {
                    console.println 'Retrying'
                    continue
                }
                stages[name] = result = 'FAILURE'
                return
            } catch (Stopped error) {
                console.println error.message
                stages[name] = result = 'ABORTED'
                return
            }
        }
    }

    private boolean applies(String condition) {
        condition in ['always', 'cleanup'] || condition == 'success' && result == 'SUCCESS' || condition == 'failure' && result == 'FAILURE' ||
            condition == 'unsuccessful' && result != 'SUCCESS'
    }

    private void after(Call condition, Map<String, String> environment) {
        console.println "[Pipeline] post ${condition.name}"
        try {
            condition.block.each { Call step ->
                switch (step.name) {
                    case 'sh': shell(step, environment); break
                    case 'archiveArtifacts': kept(step.named.artifacts, step.named.allowEmptyArchive); break
                    case 'junit': results(step.named.testResults, step.named.allowEmptyResults); break
                }
            }
        } catch (Failed error) {
            console.println "ERROR: ${error.message}"
            result = 'FAILURE'
        }
    }

    /** Runs a step as Jenkins does: `sh -xe` with the build's environment, beside what belongs to the agent. */
    private void shell(Call step, Map<String, String> environment) {
        ProcessBuilder builder = new ProcessBuilder('sh', '-xe', '-c', step.values[0] as String).directory(workspace).redirectErrorStream(true)
        builder.environment().keySet().removeIf { !(it in ['PATH', 'HOME', 'LANG', 'TMPDIR', 'JAVA_HOME']) && !(it =~ /^(WAREHOUSE|CONTAINERS?)_/) }
        builder.environment().putAll(environment)
        Process process = builder.start()
        Thread reader = Thread.start { process.inputStream.eachLine { console.println it } }
        if (!process.waitFor(Math.max(deadline - System.currentTimeMillis(), 0), TimeUnit.MILLISECONDS)) {
            process.descendants().each { it.destroy() }
            process.destroy()
            process.waitFor()
            throw new Stopped('Timeout has been exceeded')
        }
        reader.join()
        if (process.exitValue()) throw new Failed("script returned exit code ${process.exitValue()}")
    }

    private List<Path> matching(String pattern) {
        def matcher = FileSystems.default.getPathMatcher("glob:$pattern")
        Files.walk(workspace.toPath().resolve(pattern.split('/')[0])).withCloseable { walked ->
            walked.filter { Files.isRegularFile(it) }.map { workspace.toPath().relativize(it) }.filter { matcher.matches(it) }.toList()
        }
    }

    private void kept(String pattern, Boolean mayBeEmpty) {
        List<Path> found = new File(workspace, pattern.split('/')[0]).isDirectory() ? matching(pattern) : []
        if (!found && !mayBeEmpty) throw new Failed("nothing matches $pattern")
        found.each { Path path ->
            Path target = archive.toPath().resolve(path)
            Files.createDirectories(target.parent)
            Files.copy(workspace.toPath().resolve(path), target, StandardCopyOption.REPLACE_EXISTING)
        }
        console.println "Archived ${found.size()} files"
    }

    private void results(String pattern, Boolean mayBeEmpty) {
        List<Path> found = new File(workspace, pattern.split('/')[0]).isDirectory() ? matching(pattern) : []
        if (!found && !mayBeEmpty) throw new Failed("no test results match $pattern")
        int failures = found.sum(0) { Path path ->
            def text = workspace.toPath().resolve(path).toFile().text
            def suites = (text =~ /<testsuite [^>]*>/).collect { it as String }
            suites.sum(0) { ((it =~ /failures="(\d+)"/)[0][1] as int) + ((it =~ /errors="(\d+)"/)[0][1] as int) }
        }
        if (failures) result = result == 'SUCCESS' ? 'UNSTABLE' : result
        console.println "Recorded ${found.size()} files of test results, $failures failures"
    }
}
