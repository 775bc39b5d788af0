// What is refused in the controller's configuration, and that this repository's fits its pipelines.

import static org.junit.jupiter.api.Assertions.assertEquals
import static org.junit.jupiter.api.Assertions.assertThrows
import static org.junit.jupiter.api.Assertions.assertTrue

import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

class ControllerTest {
    static final File PROJECT = new File(System.getProperty('project'))
    static final String CASC = new File(PROJECT, 'jenkins/casc.yaml').text
    static final Map<String, List<String>> BAD = [
        'a password in the file': ['"${trim:${readFile:/run/secrets/jenkins-admin-password}}"', 'secret', 'password of admin must come from a file'],
        'a credential in the file': ['"${readFileBase64:/run/secrets/kubeconfig}"', 'YWJj', "credentials 'kubeconfig' must come from a file"],
        'open sign-up': ['allowsSignup: false', 'allowsSignup: true', 'anybody may sign up'],
        'builds on the controller': ['numExecutors: 0', 'numExecutors: 2', 'the controller itself must run no build'],
        'an unknown kind of credentials': ['- basicSSHUserPrivateKey:', '- sshKey:', 'sshKey is not known'],
        'an unknown part of a job': ['cpsScm {', 'cpsScn {', '`cpsScn` is not known'],
    ]

    static List<String> pipelines() {
        ['Jenkinsfile'] + new File(PROJECT, 'jenkins').list().findAll { it.endsWith('.Jenkinsfile') }.collect { "jenkins/$it".toString() }.sort()
    }

    @Test
    void 'every pipeline has a job, and every job a pipeline'() {
        assertEquals(pipelines(), new Controller(CASC).jobs.values().sort())
    }

    @Test
    void 'a pipeline with triggers is built once at the start, and no other'() {
        Controller controller = new Controller(CASC)
        List<String> timed = controller.jobs.findAll { name, path -> new File(PROJECT, path).text.contains('triggers {') }*.key
        assertEquals(timed.sort(), controller.queued.sort())
    }

    @Test
    void 'every plugin that a pipeline or the configuration uses is pinned'() {
        Controller controller = new Controller(CASC)
        Set<String> used = ['configuration-as-code', 'job-dsl', 'plain-credentials', 'ssh-credentials', 'ssh-slaves'] as Set
        pipelines().each { used += new Pipeline(new File(PROJECT, it).text, controller.offered, PROJECT).plugins }
        List<String> lines = new File(PROJECT, 'jenkins/plugins.txt').readLines()
        Controller.checkPlugins(lines, used)
        used.each { String one ->
            String said = assertThrows(Invalid) { Controller.checkPlugins(lines.findAll { !it.startsWith("$one:") }, used) }.message
            assertTrue(said.contains("lacks $one"), said)
        }
    }

    @Test
    void 'a plugin without an exact version is refused'() {
        ['git', 'git:latest', 'git:', 'git 5.10.1'].each { String line -> assertThrows(Invalid) { Controller.checkPlugins([line], [] as Set) } }
    }

    @TestFactory
    List<DynamicTest> 'refused is'() {
        BAD.collect { String what, List<String> change ->
            DynamicTest.dynamicTest(what) {
                String bad = CASC.replace(change[0], change[1])
                assertTrue(bad != CASC, 'casc.yaml holds what is replaced')
                String said = assertThrows(Invalid) { new Controller(bad) }.message
                assertTrue(said.contains(change[2]), said)
            }
        }
    }
}
