// Fairness on the readers server: each statement is known with its user, its threads and its time; it ends when its time is up, when it keeps
// others from theirs, or when it fills the memory. A server that cannot end a statement, or answers none, ends itself with a sentence, and its
// supervisor starts it again.
// Spark's own limits do not apply: a query is planned and run while its rows are fetched (spark.sql.thriftServer.incrementalCollect), outside
// of spark.sql.thriftServer.queryTimeout, and planning has no limit at all.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.warehouse

import java.lang.management.ManagementFactory
import java.nio.charset.StandardCharsets.UTF_8
import java.nio.file.{Files, Path, StandardCopyOption}
import java.security.{AccessController, PrivilegedAction}
import java.time.Instant
import java.util.Properties
import java.util.concurrent.{CompletableFuture, ConcurrentHashMap, Semaphore, SynchronousQueue, ThreadFactory, ThreadPoolExecutor, TimeUnit}
import java.util.concurrent.atomic.AtomicLong

import scala.annotation.nowarn
import scala.collection.mutable
import scala.jdk.CollectionConverters._
import scala.util.control.NonFatal

import org.apache.spark.SparkContext
import org.apache.spark.internal.Logging
import org.apache.spark.scheduler.{RunningTask, Tasks}
import org.apache.spark.sql.SparkSession

/** A call is answered with this sentence and nothing else. */
class Ended(sentence: String) extends RuntimeException(sentence)

/** One statement of a user: what is done for it, by whichever thread, and how it ended. */
class Statement(val user: String, val session: Any, turns: Semaphore, context: SparkContext) {
  val number: Long = Statement.numbers.incrementAndGet()
  val tag = s"statement-$number"
  /** Characters of its text. */
  @volatile var length = 0
  /** The sentence with which the server ended it. */
  val ended = new CompletableFuture[String]
  /** Of all that was parsed for it, views included. */
  var cost = 0.0
  /** Bytes that its threads have asked for. */
  @volatile var taken = 0L

  private val threads = mutable.Set[Thread]()
  private var used, since, endedAt = 0L

  private def now: Long = System.nanoTime()

  /** Work for this statement on the thread of the caller; `waits`: only so many of a user's statements work at the same time. */
  def work[Result](waits: Boolean)(body: => Result): Result = {
    if (waits) turns.acquire()
    try {
      begin()
      try body
      finally end()
    } finally if (waits) turns.release()
  }

  private def begin(): Unit = synchronized {
    if (ended.isDone) throw new Ended(ended.join())
    if (threads.isEmpty) since = now
    threads += Thread.currentThread
    Statement.current.set(this)
    // A thread of the pool has the properties of whoever made it.
    val own = new Properties
    own.setProperty(SparkContext.SPARK_SCHEDULER_POOL, Statement.pool + user)
    context.setLocalProperties(own)
    context.addJobTag(tag)
  }

  private def end(): Unit = synchronized {
    threads -= Thread.currentThread
    if (threads.isEmpty) used += now - since
    Statement.current.remove()
    context.setLocalProperties(new Properties)
    // What was meant for this work must not meet the next one.
    Thread.interrupted()
  }

  /** End it: whoever waits for it gets the sentence at once. */
  def end(sentence: String): Unit = {
    synchronized { if (endedAt == 0) endedAt = now }
    ended.complete(sentence)
    interrupt()
  }

  /** Interrupt its threads and jobs, again and again: what it does next may begin after the first time. */
  def interrupt(): Unit = {
    synchronized(threads.foreach(_.interrupt()))
    context.cancelJobsWithTag(tag, ended.join())
  }

  def isWorking: Boolean = synchronized(threads.nonEmpty)
  def working: Seq[Thread] = synchronized(threads.toSeq)
  def usedSeconds: Long = synchronized(TimeUnit.NANOSECONDS.toSeconds(used + (if (threads.isEmpty) 0 else now - since)))
  def endedSeconds: Long = synchronized(if (endedAt == 0) 0 else TimeUnit.NANOSECONDS.toSeconds(now - endedAt))
}

object Statement {
  private val numbers = new AtomicLong
  /** Before a user's name in that of a pool, for the server has pools of its own. */
  val pool = "user "
  /** The statement that this thread works for. */
  val current = new ThreadLocal[Statement]
}

/** Runs each task for the statement of the thread that gave it. */
class Workers extends ThreadPoolExecutor(0, Int.MaxValue, 60, TimeUnit.SECONDS, new SynchronousQueue[Runnable], Workers.threads) {
  override def execute(task: Runnable): Unit = {
    val statement = Statement.current.get
    super.execute(if (statement == null) task else () => {
      try statement.work(waits = true)(task.run())
      catch { case _: Ended | _: InterruptedException if statement.ended.isDone => }
    })
  }

  /** Let a thread of its own do something for a statement, and wait for it or for the statement's end. */
  def call[Result](statement: Statement, waits: Boolean)(body: => Result): Result = {
    val done = new CompletableFuture[Result]
    super.execute { () =>
      try done.complete(statement.work(waits)(body))
      catch { case problem: Throwable => done.completeExceptionally(problem) }
    }
    CompletableFuture.anyOf(done, statement.ended).exceptionally(_ => null).join()
    if (statement.ended.isDone) throw new Ended(statement.ended.join())
    try done.join()
    catch { case wrapped: java.util.concurrent.CompletionException if wrapped.getCause != null => throw wrapped.getCause }
  }
}

object Workers {
  /** Deep statements need deep stacks. */
  private val stackBytes = 16L << 20
  private val threads: ThreadFactory = task => {
    val thread = new Thread(Thread.currentThread.getThreadGroup, task, "readers-worker", stackBytes)
    thread.setDaemon(true)
    thread
  }
}

/** All statements, and the clock that looks after them. */
class Fairness(session: SparkSession) extends Logging {
  import Fairness._

  private val context = session.sparkContext
  private val limit = context.getConf.getLong("spark.warehouse.readers.seconds", 0)
  private val scratch = Path.of(System.getProperty("java.io.tmpdir"))
  private val tasks = new Tasks(context)
  private val statements = ConcurrentHashMap.newKeySet[Statement]()
  private val turns = new ConcurrentHashMap[String, Semaphore]
  val workers = new Workers

  @volatile private var restarting: String = _
  // The first statement takes longer, on a machine that is busy much longer.
  @volatile private var healthyAt = System.nanoTime() + TimeUnit.SECONDS.toNanos(firstHealthSeconds)
  @volatile private var problem = "it did not come to an end"

  def begin(user: String, session: Any): Statement = {
    if (restarting != null) throw new Ended(restarting)
    val statement = new Statement(user, session, turns.computeIfAbsent(user, _ => new Semaphore(statementsAtOnce, true)), context)
    statements.add(statement)
    statement
  }

  def refuseIfRestarting(): Unit = if (restarting != null) throw new Ended(restarting)

  /** What was ended stays until its last task has, which may be after its client has gone. */
  def forget(statement: Statement): Unit =
    if (statement.isWorking) statement.end("its client closed it") else if (!statement.ended.isDone) statements.remove(statement)

  def forgetSession(session: Any): Unit = statements.asScala.filter(_.session == session).foreach(forget)

  def start(): Unit = {
    thread("readers-fairness")(every(1)(look()))
    thread("readers-health")(every(healthEverySeconds)(askItself()))
  }

  private def thread(name: String)(body: => Unit): Unit = {
    val made = new Thread(() => body, name)
    made.setDaemon(true)
    made.setPriority(Thread.MAX_PRIORITY)
    made.start()
  }

  private def every(seconds: Int)(body: => Unit): Unit = while (true) {
    try body
    catch {
      case NonFatal(error) => logError("could not look after the statements", error)
      // Whoever filled the memory is ended, and this thread goes on.
      case _: OutOfMemoryError => endGreediest()
    }
    Thread.sleep(seconds * 1000L)
  }

  private def seconds(since: Long): Long = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - since)

  private def look(): Unit = {
    val running = tasks.running()
    for (statement <- statements.asScala) {
      val busy = statement.isWorking || running.exists(_.tags(statement.tag))
      if (!statement.ended.isDone) {
        if (limit > 0 && statement.usedSeconds >= limit) {
          statement.end(s"it was ended because it ran longer than $limit s (readers_query_seconds); ask for less: fewer days, a join condition")
        }
      } else if (!busy) {
        statements.remove(statement)
      } else {
        statement.interrupt()
        if (statement.endedSeconds >= stopSeconds) stop(statement, running.filter(_.tags(statement.tag)).map(_.id))
        if (statement.endedSeconds >= ignoredSeconds) {
          restart(s"a statement of ${statement.user} could not be ended: it ignored that for $ignoredSeconds s")
        }
      }
    }
    share()
    noteMemory(running)
    lookAtMemory()
    if (seconds(healthyAt) > healthSeconds) restart(s"it answered no statement of its own for $healthSeconds s: $problem")
  }

  /**
   * Stop the threads that look at no interrupt, where Java still can (before 20): those in a regular expression, and tasks in the code of an
   * expression. They hold nothing there that others need.
   */
  private def stop(statement: Statement, taskIds: Seq[Long]): Unit = {
    val runners = Thread.getAllStackTraces.asScala.collect {
      case (thread, stack) if taskIds.exists(id => thread.getName.endsWith(s"(TID $id)")) && isIn(stack.take(12), expressions) => thread
    }
    for (thread <- runners ++ statement.working.filter(one => isIn(one.getStackTrace.take(3), regularExpressions))) {
      try thread.stop(): @nowarn("cat=deprecation")
      catch { case _: UnsupportedOperationException => }
    }
  }

  private def isIn(stack: Array[StackTraceElement], packages: Seq[String]): Boolean =
    stack.exists(frame => packages.exists(frame.getClassName.startsWith))

  private val waitingSince = mutable.Map[String, Long]()
  private val servedAt = mutable.Map[String, Long]()

  /** Give a slot to a user who waits for one while others hold them all: Spark itself never takes one back. */
  private def share(): Unit = {
    val running = tasks.running()
    val waiting = if (running.size < tasks.slots) Set.empty[String] else tasks.waiting()
    waitingSince.filterInPlace((pool, _) => waiting(pool))
    servedAt.filterInPlace((_, since) => seconds(since) < servedSeconds)
    waiting.foreach(pool => waitingSince.getOrElseUpdate(pool, System.nanoTime()))
    val others = running.filterNot(task => waiting(task.pool))
    if (waiting.nonEmpty && others.nonEmpty) {
      val (_, most) = others.groupBy(_.pool).maxBy(_._2.size)
      val youngest = most.maxBy(_.since)
      val longest = waitingSince.values.map(seconds).max
      if (longest >= endAfterSeconds + ignoredSeconds) {
        restart(s"tasks of ${youngest.pool.stripPrefix(Statement.pool)} could not be ended and others waited for $longest s")
      } else if (longest >= endAfterSeconds) {
        for (statement <- statements.asScala if youngest.tags(statement.tag) && !statement.ended.isDone) {
          statement.end("it was ended because it kept the processors while others waited; ask for less: fewer days, a join condition")
        }
      } else if (waitingSince.exists { case (pool, since) => seconds(since) >= (if (servedAt.contains(pool)) 0 else killAfterSeconds) }) {
        // The next stages of the same statement need not wait as long.
        waiting.foreach(pool => servedAt(pool) = System.nanoTime())
        context.killTaskAttempt(youngest.id, interruptThread = true, "another user waits")
      }
    }
  }

  private val collectors = ManagementFactory.getGarbageCollectorMXBeans.asScala
  private val collecting = mutable.Queue[(Long, Long)]()

  private val threads = ManagementFactory.getThreadMXBean.asInstanceOf[com.sun.management.ThreadMXBean]
  private val allocated = mutable.Map[Long, Long]()

  /** Note what the threads of each statement have taken since the last time: memory that was given back counts too. */
  private def noteMemory(running: Seq[RunningTask]): Unit = {
    val of = mutable.Map[Long, Statement]()
    val live = statements.asScala.toSeq
    for (statement <- live; thread <- statement.working) of(thread.getId) = statement
    val names = running.flatMap(task => live.find(one => task.tags(one.tag)).map(s"(TID ${task.id})" -> _))
    if (names.nonEmpty) {
      for (thread <- Thread.getAllStackTraces.keySet.asScala; (end, statement) <- names if thread.getName.endsWith(end)) of(thread.getId) = statement
    }
    val ids = of.keys.toArray
    val now = ids.zip(threads.getThreadAllocatedBytes(ids)).toMap
    for ((id, bytes) <- now; before <- allocated.get(id)) of(id).taken += bytes - before
    allocated.clear()
    allocated ++= now
  }

  /** End the statement that has taken most where the server does little but look for free memory. */
  private def lookAtMemory(): Unit = {
    collecting.enqueue((System.nanoTime() / 1000000, collectors.map(_.getCollectionTime).sum))
    while (collecting.size > 1 && collecting.last._1 - collecting.head._1 > pressureMillis) collecting.dequeue()
    val (passed, collected) = (collecting.last._1 - collecting.head._1, collecting.last._2 - collecting.head._2)
    if (passed > pressureMillis / 2 && collected > passed * pressureShare) endGreediest()
  }

  private def endGreediest(): Unit = {
    // One that is ended already gives its memory back when its last thread has seen that.
    val isEnding = statements.asScala.exists(one => one.ended.isDone && one.isWorking && one.endedSeconds < memorySeconds)
    if (!isEnding) statements.asScala.filter(one => one.isWorking && !one.ended.isDone).maxByOption(_.taken).foreach { statement =>
      statement.end("it was ended because the server has no memory left, and it took most; ask for less: fewer columns or days, an aggregate")
      collecting.clear()
    }
  }

  private val own = session.newSession()

  /** Run a statement as its clients do, and leave a sign of life. Where no slot is free, one that needs none: tasks come to an end without it. */
  private def askItself(): Unit = try {
    context.setLocalProperty(SparkContext.SPARK_SCHEDULER_POOL, "readers-health")
    val rows = own.sql(if (tasks.running().size < tasks.slots) "SELECT count(*) FROM range(1)" else "SELECT 1").collect()
    if (rows.length == 1 && !context.isStopped) {
      healthyAt = System.nanoTime()
      leave(sign, Instant.now.toString)
    }
  } catch { case NonFatal(error) => problem = String.valueOf(error.getMessage).linesIterator.nextOption.getOrElse("") }

  private def leave(name: String, text: String): Unit = AccessController.doPrivileged(new PrivilegedAction[Unit] {
    override def run(): Unit = {
      val partial = scratch.resolve(s"$name.partial")
      Files.write(partial, text.getBytes(UTF_8))
      Files.move(partial, scratch.resolve(name), StandardCopyOption.REPLACE_EXISTING)
    }
  })

  /** Tell every session why, and end the process; its supervisor starts it again. */
  private def restart(why: String): Unit = {
    restarting = s"the readers server starts again, because $why; ask again in a minute"
    logError(restarting)
    try {
      leave(reason, s"${Instant.now} $why")
      statements.asScala.foreach(_.end(restarting))
      Thread.sleep(farewellSeconds * 1000L)
    } finally {
      AccessController.doPrivileged(new PrivilegedAction[Unit] { override def run(): Unit = Runtime.getRuntime.halt(1) })
    }
  }
}

object Fairness {
  /** Files in the scratch folder, for whoever looks at the server from outside. */
  val (sign, reason) = ("healthy", "restarted")
  /** Statements of one user that work at the same time; more wait for their turn. */
  val statementsAtOnce = 8
  val sessionsOfUser = 60
  val ignoredSeconds = 20
  val stopSeconds = 3
  private val regularExpressions = Seq("java.util.regex.")
  private val expressions = regularExpressions :+ "org.apache.spark.sql.catalyst.expressions."
  val killAfterSeconds = 2
  val servedSeconds = 30
  val endAfterSeconds = 6
  val healthEverySeconds = 5
  val healthSeconds = 90
  val firstHealthSeconds = 120
  val farewellSeconds = 3
  val pressureMillis = 6000
  /** How long the memory of an ended statement is waited for before another one is ended. */
  val memorySeconds = 10
  val pressureShare = 0.7
}
