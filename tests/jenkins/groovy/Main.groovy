// Run one build of a pipeline in a workspace.
// Usage: java -cp ... Main PIPELINE WORKSPACE ARCHIVE NUMBER [credential:ID=FILE | NAME=VALUE ...]
// Ends with 0 when the build ended in SUCCESS.

class Main {
    static void main(String[] arguments) {
        def (String path, String workspace, String archive, String number) = arguments
        File project = new File(workspace)
        Map<String, String> given = [:], credentials = [:]
        arguments.drop(4).each { String argument ->
            List<String> pair = argument.split('=', 2)
            (pair[0].startsWith('credential:') ? credentials : given)[pair[0] - 'credential:'] = pair[1]
        }
        Offered offered = new Controller(new File(project, 'jenkins/casc.yaml').text).offered
        Pipeline pipeline = new Pipeline(new File(project, path).text, offered, project)
        Build build = new Build(
            pipeline: pipeline, job: new File(path).name - ~/\.?Jenkinsfile$/ ?: 'ci', number: number as int, workspace: project, archive: new File(archive),
            given: given, credentials: credentials,
        ).run()
        build.stages.each { name, result -> println "stage $name: $result" }
        System.exit(build.result == 'SUCCESS' ? 0 : 1)
    }
}
