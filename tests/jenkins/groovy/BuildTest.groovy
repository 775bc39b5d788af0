// How a build goes: parameters, credentials, retries, failures, time limits and post steps, each `sh` a real process.

import static org.junit.jupiter.api.Assertions.assertEquals
import static org.junit.jupiter.api.Assertions.assertFalse
import static org.junit.jupiter.api.Assertions.assertTrue

import java.nio.file.Path
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir

class BuildTest {
    @TempDir
    Path folder
    private File workspace
    private final ByteArrayOutputStream said = new ByteArrayOutputStream()

    @BeforeEach
    void 'a workspace with the real wrapper and small verbs'() {
        workspace = folder.resolve('workspace').toFile()
        new File(workspace, 'bash').mkdirs()
        ['pipeline.sh', 'lib.sh'].each { new File(workspace, "bash/$it") << new File(PipelineTest.PROJECT, "bash/$it").text }
        verb('load', 'printf "<%s>" "$@"; echo; cat "$WAREHOUSE_PGPASS_FILE"')
        verb('reconcile', 'echo compared')
        new File(workspace, 'bash').listFiles()*.setExecutable(true)
    }

    private void verb(String name, String body) {
        File file = new File(workspace, "bash/${name}.sh")
        file.text = "#!/usr/bin/env bash\n$body\n"
        file.setExecutable(true)
    }

    private Build built(Map<String, String> given = [:], String text = PipelineTest.GOOD, int number = 1) {
        File password = folder.resolve('pgpass').toFile()
        password.text = 'the password\n'
        new Build(
            pipeline: new Pipeline(text, PipelineTest.OFFERED, workspace), job: 'test', number: number, workspace: workspace,
            archive: folder.resolve("archive-$number").toFile(), given: given, credentials: ['warehouse-pgpass': password.path],
            console: new PrintStream(said, true),
        ).run()
    }

    @Test
    void 'parameters reach the verb as words and credentials as files'() {
        assertEquals('SUCCESS', built(TABLES: ' customers  transactions ').result)
        assertTrue(said.toString().contains('<full><customers><transactions>\nthe password'), said.toString())
        assertTrue(folder.resolve('archive-1/reports/Load.log').toFile().text.contains('the password'))
        assertFalse(folder.resolve('archive-1/reports/failure.txt').toFile().exists())
    }

    @Test
    void 'an empty parameter adds no word'() {
        built()
        assertTrue(said.toString().contains('<full>\n'), said.toString())
    }

    @Test
    void 'a parameter that would be another command is refused and nothing runs'() {
        File victim = folder.resolve('victim').toFile()
        victim.text = 'still here'
        ["transactions; rm $victim", "\$(rm $victim)", "`rm $victim`", '--force', 'a && b', "'", '*', '../x'].eachWithIndex { String bad, int at ->
            said.reset()
            assertEquals('FAILURE', built([TABLES: bad], PipelineTest.GOOD, at + 1).result, bad)
            assertTrue(said.toString().contains('stage Load, bash/load.sh: error: parameter TABLES is '), said.toString())
            assertFalse(said.toString().contains('the password'), 'the verb has run')
        }
        assertEquals('still here', victim.text)
    }

    @Test
    void 'a stage that fails stops the build, and the post steps name its own sentence'() {
        verb('load', 'echo "error: the source is empty; look" >&2; exit 3')
        String text = PipelineTest.GOOD.replace("stage('Load')", "stage('Before') { steps { sh 'bash/pipeline.sh reconcile' } }\nstage('Load')")
        Build build = built([:], text)
        assertEquals([Before: 'SUCCESS', Load: 'FAILURE', Reconcile: 'NOT_BUILT'], build.stages)
        List<String> lines = said.toString().readLines()
        assertEquals('stage Load, bash/load.sh: exit code 3: error: the source is empty; look', lines[-2])
        assertEquals('Finished: FAILURE', lines[-1])
        assertEquals(lines[-2], folder.resolve('archive-1/reports/failure.txt').toFile().text.trim())
    }

    @Test
    void 'a stage with a retry runs again, and a success leaves no failure behind'() {
        verb('load', 'echo x >> tries; [ "$(wc -l < tries)" = 2 ] || { echo "error: away" >&2; exit 6; }')
        assertEquals('SUCCESS', built().result)
        assertEquals(2, new File(workspace, 'tries').readLines().size())
        assertFalse(folder.resolve('archive-1/reports/failure.txt').toFile().exists())
    }

    @Test
    void 'a stage that takes too long is stopped with all its processes, and said to be stopped'() {
        verb('load', 'sleep 60')
        long begun = System.currentTimeMillis()
        Build build = built([:], PipelineTest.GOOD.replace("time: 1, unit: 'HOURS'", "time: 1, unit: 'SECONDS'"))
        assertEquals('ABORTED', build.result)
        assertTrue(System.currentTimeMillis() - begun < 20_000)
        assertTrue(said.toString().contains('stage Load, bash/load.sh: stopped before it ended'), said.toString())
    }

    @Test
    void 'a new build does not keep the reports of the one before'() {
        verb('load', 'echo "error: away" >&2; exit 6')
        built()
        verb('load', 'echo fine')
        built([:], PipelineTest.GOOD, 2)
        assertEquals('fine', folder.resolve('archive-2/reports/Load.log').toFile().text.trim())
    }
}
