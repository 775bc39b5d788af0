// What the runner refuses in a pipeline, and that the pipelines of this repository hold nothing of it.

import static org.junit.jupiter.api.Assertions.assertEquals
import static org.junit.jupiter.api.Assertions.assertThrows
import static org.junit.jupiter.api.Assertions.assertTrue

import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory

class PipelineTest {
    static final File PROJECT = new File(System.getProperty('project'))
    static final Offered OFFERED = new Offered(credentials: ['warehouse-pgpass'], resources: ['warehouse-loads'], labels: ['warehouse'])
    static final String GOOD = '''pipeline {
    agent { label 'warehouse' }
    triggers { cron('H/15 * * * *') }
    parameters {
        string(name: 'TABLES', defaultValue: '', trim: true, description: 'tables')
    }
    options {
        disableConcurrentBuilds()
        lock(resource: 'warehouse-loads')
        timeout(time: 1, unit: 'HOURS')
        timestamps()
        buildDiscarder(logRotator(numToKeepStr: '5'))
    }
    environment { WAREHOUSE_PGPASS_FILE = credentials('warehouse-pgpass') }
    stages {
        stage('Load') {
            options { retry(2) }
            steps { sh 'bash/pipeline.sh load full TABLES' }
        }
        stage('Reconcile') {
            steps { sh 'bash/pipeline.sh reconcile' }
        }
    }
    post {
        always { archiveArtifacts(artifacts: 'reports/**', allowEmptyArchive: true) }
        unsuccessful { sh 'bash/pipeline.sh failure' }
    }
}
'''
    // What is put in the place of what, and what the error says.
    static final Map<String, List<String>> BAD = [
        'Groovy that does not parse': ["agent { label 'warehouse' }", 'agent { label', 'not Groovy'],
        'an unknown section': ['triggers {', 'trigers {', 'line 3: `trigers` is not known in `pipeline`'],
        'a section that stands twice': ["agent { label 'warehouse' }", "agent { label 'warehouse' }\nagent { label 'warehouse' }", '`agent` stands twice'],
        'a section that is missing': ["agent { label 'warehouse' }", '', '`agent` is missing'],
        'a label that no agent has': ["label 'warehouse'", "label 'windows'", "no agent has the label 'windows'"],
        'an unknown option': ['timestamps()', 'timestamp()', 'line 11: `timestamp` is not known in `options`'],
        'an option that takes something else': ["timeout(time: 1, unit: 'HOURS')", "timeout(time: 'one', unit: 'HOURS')", 'takes time: Integer'],
        'an unknown unit': ["unit: 'HOURS'", "unit: 'FORTNIGHTS'", 'no unit FORTNIGHTS'],
        'an option that every pipeline has': ['disableConcurrentBuilds()', '', 'option `disableConcurrentBuilds` is missing'],
        'a lock of a resource that is not defined': ["resource: 'warehouse-loads'", "resource: 'loads'", "resource 'loads' is not defined"],
        'a load without a lock': ["lock(resource: 'warehouse-loads')", '', 'and there is no lock'],
        'a load that is not compared': ["sh 'bash/pipeline.sh reconcile'", "sh 'bash/pipeline.sh features full'", 'the next one does not reconcile'],
        'a stage that stands twice': ["stage('Reconcile')", "stage('Load')", "stage 'Load' stands twice"],
        'an unknown parameter type': ['string(name', 'strin(name', '`strin` is not known in `parameters`'],
        'a parameter with an unknown field': ['trim: true', 'trimmed: true', '`string` takes name: String'],
        'a parameter that is not declared': ['load full TABLES', 'load full MODELS', 'parameter MODELS is not declared'],
        'a parameter that no stage uses': ['load full TABLES', 'load full', 'parameter TABLES is used by no stage'],
        'credentials that are not defined': ["credentials('warehouse-pgpass')", "credentials('pgpass')", "credentials 'pgpass' are not defined"],
        'a cron of four fields': ['H/15 * * * *', 'H/15 * * *', 'has 4 fields'],
        'a cron out of range': ['H/15 * * * *', '0 25 * * *', '25 is not in 0-23'],
        'a cron with a word': ['H/15 * * * *', 'H/15 * * * often', "'often' is no field"],
        'an unknown step': ["steps { sh 'bash/pipeline.sh load", "steps { bat 'bash/pipeline.sh load", '`bat` is not known in `steps`'],
        'two steps in a stage': ["steps { sh 'bash/pipeline.sh", "steps { sh 'bash/pipeline.sh status'\nsh 'bash/pipeline.sh", "has 2 steps"],
        'a step in double quotes': ["sh 'bash/pipeline.sh load full TABLES'", 'sh "bash/pipeline.sh load full TABLES"', 'not one verb of bash/ in single quotes'],
        'a parameter that Groovy puts in': ["sh 'bash/pipeline.sh load full TABLES'", 'sh "bash/pipeline.sh load full ${params.TABLES}"', 'is logic'],
        'a parameter that the shell puts in': ['load full TABLES', 'load full $TABLES', 'not one verb of bash/ in single quotes'],
        'two commands': ['load full TABLES', 'load full TABLES; rm -rf x', 'not one verb of bash/ in single quotes'],
        'a command outside of bash/': ['bash/pipeline.sh load full TABLES', 'make load', 'not one verb of bash/ in single quotes'],
        'a step in three quotes': ["sh 'bash/pipeline.sh load full TABLES'", "sh '''bash/pipeline.sh load full TABLES'''", 'not one verb of bash/'],
        'a script that is not there': ["'bash/pipeline.sh failure'", "'bash/tell.sh failure'", 'there is no program bash/tell.sh'],
        'a verb that is not there': ['bash/pipeline.sh load', 'bash/pipeline.sh lode', 'there is no program bash/lode.sh'],
        'a script block': ["steps { sh 'bash/pipeline.sh load full TABLES' }", "steps { script { sh 'bash/pipeline.sh load full TABLES' } }", '`script` is not known'],
        'an if': ["steps { sh 'bash/pipeline.sh load full TABLES' }", "if (true) { steps { sh 'bash/pipeline.sh load full TABLES' } }", 'is logic'],
        'a variable': ['retry(2)', 'retry(attempts)', 'is logic'],
        'a sum': ['retry(2)', 'retry(1 + 1)', 'is logic'],
        'something beside the pipeline': ['pipeline {', 'def x = 1\npipeline {', 'is logic'],
        'an unknown post condition': ['unsuccessful {', 'sometimes {', '`sometimes` is not known in `post`'],
        'an unknown post step': ['archiveArtifacts(', 'archive(', '`archive` is not known in `after`'],
        'logic in the environment': ["credentials('warehouse-pgpass')", 'System.getenv("X")', 'is logic'],
    ]

    @Test
    void 'a pipeline that keeps every rule is accepted'() {
        assertEquals(['Load', 'Reconcile'], new Pipeline(GOOD, OFFERED, PROJECT).root.only('stages').block*.values.flatten())
    }

    @TestFactory
    List<DynamicTest> 'the runner refuses'() {
        BAD.collect { String what, List<String> change ->
            DynamicTest.dynamicTest(what) {
                String bad = GOOD.replace(change[0], change[1])
                assertTrue(bad != GOOD, 'the good pipeline holds what is replaced')
                String said = assertThrows(Invalid) { new Pipeline(bad, OFFERED, PROJECT) }.message
                assertTrue(said.contains(change[2]), said)
            }
        }
    }

    @TestFactory
    List<DynamicTest> 'the pipelines of this repository keep every rule'() {
        Offered offered = new Controller(new File(PROJECT, 'jenkins/casc.yaml').text).offered
        ControllerTest.pipelines().collect { String path ->
            DynamicTest.dynamicTest(path) { new Pipeline(new File(PROJECT, path).text, offered, PROJECT) }
        }
    }

    @Test
    void 'crons of every form are accepted'() {
        ['H/15 * * * *', '0 6 * * 1-5', 'H(0-29)/10 1,13 1 */3 0', '@daily'].each { Cron.check(it, 1) }
    }
}
