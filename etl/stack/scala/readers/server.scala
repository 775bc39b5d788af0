// The readers server: Spark's HiveServer2-protocol server with a door of its own, at which what clients send is looked at first.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.hive.thriftserver

import java.util.concurrent.ConcurrentHashMap

import scala.jdk.CollectionConverters._
import scala.util.Try

import org.apache.hadoop.hive.common.ServerUtils
import org.apache.hadoop.hive.conf.HiveConf
import org.apache.hive.service.auth.TSetIpAddressProcessor
import org.apache.hive.service.cli.{CLIService, HiveSQLException, OperationHandle, SessionHandle}
import org.apache.hive.service.cli.thrift.ThriftBinaryCLIService
import org.apache.hive.service.server.HiveServer2
import org.apache.hive.service.rpc.thrift._
import org.apache.spark.internal.Logging
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.hive.HiveUtils
import org.apache.spark.sql.hive.thriftserver.ReflectionUtils._
import org.apache.spark.sql.hive.thriftserver.ui.{HiveThriftServer2EventManager, HiveThriftServer2Listener}
import org.apache.spark.sql.warehouse.{Allowed, Bounds, Ended, Fairness, Statement}
import org.apache.spark.status.ElementTrackingStore
import org.apache.spark.util.{ShutdownHookManager, Utils}
import org.apache.thrift.protocol.TBinaryProtocol
import org.apache.thrift.server.TServer
import org.apache.thrift.transport.TServerTransport

/** Starts as Spark's HiveThriftServer2 does, but for the door. */
object ReadersServer extends Logging {
  def main(arguments: Array[String]): Unit = {
    Utils.initDaemon(log)
    SparkSQLEnv.init()
    ShutdownHookManager.addShutdownHook { () => SparkSQLEnv.stop() }
    val session = SparkSQLEnv.sparkSession
    val context = session.sparkContext
    val conf = HiveUtils.newClientForExecution(context.conf, session.sessionState.newHadoopConf()).conf
    ServerUtils.cleanUpScratchDir(conf)
    val server = new ReadersServer(session)
    // Spark's sessions and operations report to these two.
    HiveThriftServer2.eventManager = new HiveThriftServer2EventManager(context)
    HiveThriftServer2.listener =
      new HiveThriftServer2Listener(context.statusStore.store.asInstanceOf[ElementTrackingStore], context.conf, Some(server))
    context.listenerBus.addToStatusQueue(HiveThriftServer2.listener)
    server.init(conf)
    server.start()
  }
}

class ReadersServer(session: SparkSession) extends HiveServer2 with ReflectedCompositeService {
  private val fairness = new Fairness(session)

  override def init(conf: HiveConf): Unit = {
    val service = new SparkSQLCLIService(this, session)
    val door = new Door(service, fairness)
    for ((name, part) <- Seq("cliService" -> service, "thriftCLIService" -> door)) {
      setSuperField(this, name, part)
      addService(part)
    }
    initCompositeService(conf)
    setSuperField(service.getSessionManager, "backgroundOperationPool", fairness.workers)
  }

  override def start(): Unit = {
    super.start()
    fairness.start()
  }
}

/** Every call of a client comes through here. */
class Door(service: CLIService, fairness: Fairness) extends ThriftBinaryCLIService(service) {
  override protected def initializeServer(): Unit = {
    super.initializeServer()
    change("serverTransport_")(door => new Connections(door.asInstanceOf[TServerTransport]))
    // A list or a map takes memory for as many as it announces.
    change("inputProtocolFactory_")(_ => new TBinaryProtocol.Factory(false, true, Connections.messageBytes, Door.mostInOne))
  }

  private def change(field: String)(changed: AnyRef => AnyRef): Unit = {
    val found = classOf[TServer].getDeclaredField(field)
    found.setAccessible(true)
    found.set(server, changed(found.get(server)))
  }

  private val sessions = new ConcurrentHashMap[SessionHandle, OpenedSession]
  /** By operation: a query is planned and run while its rows are fetched. */
  private val statements = new ConcurrentHashMap[OperationHandle, Statement]

  /** Open a session without the settings that it may not have: `set:system:` would change the whole server before any statement. */
  override def OpenSession(request: TOpenSessionReq): TOpenSessionResp = {
    if (request.isSetConfiguration) {
      request.setConfiguration(request.getConfiguration.asScala.filter { case (name, _) => Door.isAllowed(name) }.asJava)
    }
    try {
      fairness.refuseIfRestarting()
      // What is opened before anything can be ended must not take long.
      val given = Seq(request.getUsername, TSetIpAddressProcessor.getUserName) ++ (if (request.isSetConfiguration) request.getConfiguration.values.asScala else Nil)
      if (given.exists(text => text != null && text.length > Door.longestName)) {
        throw new Ended(s"a name has more than ${Door.longestName} characters")
      }
      makeRoomForSession()
      val response = super.OpenSession(request)
      if (response.isSetSessionHandle) opened(new SessionHandle(response.getSessionHandle))
      response
    } catch { case ended: Ended => new TOpenSessionResp(status(ended), TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V10) }
  }

  private def opened(handle: SessionHandle): Unit = {
    // Hive shortens some names, and this one counts from here on.
    val user = service.getSessionManager.getSession(handle).getUsername
    if (sessions.values.asScala.count(_.user == user) >= Fairness.sessionsOfUser) {
      service.closeSession(handle)
      throw new Ended(s"$user has ${Fairness.sessionsOfUser} open sessions, as many as one user may have; close some")
    }
    val connection = Connections.current.get
    sessions.put(handle, new OpenedSession(user, connection))
    connection.sessions(1)
  }

  /** Where names are only claimed, nobody is kept out by one who claims many: of all sessions the one that was idle longest gives way. */
  private def makeRoomForSession(): Unit = {
    // A client that goes away without a word has its session closed behind this door.
    for (session <- sessions.keySet.asScala if Try(service.getSessionManager.getSession(session)).isFailure) forget(session)
    if (sessions.size >= Door.mostSessions) {
      val working = statements.values.asScala.filter(_.isWorking).map(_.session).toSet
      for ((handle, _) <- sessions.asScala.filterNot(one => working(one._1)).minByOption(_._2.usedAt)) {
        Try(service.closeSession(handle))
        forget(handle)
      }
    }
  }

  private def forget(session: SessionHandle): Unit = {
    // Another connection may have closed it.
    Option(sessions.remove(session)).foreach(_.connection.sessions(-1))
    statements.values.removeIf(_.session == session)
    fairness.forgetSession(session)
  }

  override def CloseSession(request: TCloseSessionReq): TCloseSessionResp = {
    val response = super.CloseSession(request)
    // Where that failed it is open, and counts.
    if (response.getStatus.getStatusCode == TStatusCode.SUCCESS_STATUS) forget(new SessionHandle(request.getSessionHandle))
    response
  }

  override def ExecuteStatement(request: TExecuteStatementReq): TExecuteStatementResp =
    // Before anything keeps the text.
    if (request.getStatement.length > Bounds.characters) new TExecuteStatementResp(status(new Ended(Bounds.tooLong(request.getStatement))))
    else {
      makeRoomForTexts(request.getStatement.length)
      answered(request.getSessionHandle, !request.isRunAsync, super.ExecuteStatement(request), request.getStatement.length)(
        _.getOperationHandle, new TExecuteStatementResp(_))
    }

  /** What a long statement has become stays in memory as long as its operation is open. */
  private def makeRoomForTexts(length: Int): Unit = if (length > Door.shortText) {
    val long = statements.asScala.toSeq.filter { case (_, one) => one.length > Door.shortText && !one.isWorking && !one.ended.isDone }.sortBy(_._2.number)
    var total = long.map(_._2.length.toLong).sum + length
    for ((handle, statement) <- long if total > Door.openText) {
      statement.end("it was closed for a newer one, because long statements are open; close a statement when its rows are read")
      Try(service.closeOperation(handle))
      total -= statement.length
    }
  }

  override def GetTypeInfo(request: TGetTypeInfoReq): TGetTypeInfoResp =
    answered(request.getSessionHandle, true, super.GetTypeInfo(request))(_.getOperationHandle, new TGetTypeInfoResp(_))

  override def GetCatalogs(request: TGetCatalogsReq): TGetCatalogsResp =
    answered(request.getSessionHandle, true, super.GetCatalogs(request))(_.getOperationHandle, new TGetCatalogsResp(_))

  override def GetTableTypes(request: TGetTableTypesReq): TGetTableTypesResp =
    answered(request.getSessionHandle, true, super.GetTableTypes(request))(_.getOperationHandle, new TGetTableTypesResp(_))

  // Tables have no keys. Spark would ask a client of the metastore that it does not have.
  override def GetPrimaryKeys(request: TGetPrimaryKeysReq): TGetPrimaryKeysResp =
    nothing(request.getSessionHandle, Door.primaryKeys, new TGetPrimaryKeysResp(_))((answer, handle) => answer.setOperationHandle(handle))

  override def GetCrossReference(request: TGetCrossReferenceReq): TGetCrossReferenceResp =
    nothing(request.getSessionHandle, Door.crossReference, new TGetCrossReferenceResp(_))((answer, handle) => answer.setOperationHandle(handle))

  /** Answer with columns and no rows. */
  private def nothing[Response](session: TSessionHandle, columns: Seq[String], response: TStatus => Response)(set: (Response, TOperationHandle) => Unit): Response = {
    val asked = ExecuteStatement(new TExecuteStatementReq(session, s"SELECT ${columns.mkString(", ")} WHERE false"))
    val answer = response(asked.getStatus)
    if (asked.isSetOperationHandle) set(answer, asked.getOperationHandle)
    answer
  }

  override def GetSchemas(request: TGetSchemasReq): TGetSchemasResp =
    looked(request.getSchemaName)(request.getSessionHandle, super.GetSchemas(request))(_.getOperationHandle, new TGetSchemasResp(_))

  override def GetTables(request: TGetTablesReq): TGetTablesResp =
    looked(request.getSchemaName, request.getTableName)(request.getSessionHandle, super.GetTables(request))(_.getOperationHandle, new TGetTablesResp(_))

  override def GetColumns(request: TGetColumnsReq): TGetColumnsResp =
    looked(request.getSchemaName, request.getTableName, request.getColumnName)(request.getSessionHandle, super.GetColumns(request))(_.getOperationHandle, new TGetColumnsResp(_))

  override def GetFunctions(request: TGetFunctionsReq): TGetFunctionsResp =
    looked(request.getSchemaName, request.getFunctionName)(request.getSessionHandle, super.GetFunctions(request))(_.getOperationHandle, new TGetFunctionsResp(_))

  /** Answer a question about names, which are patterns. */
  private def looked[Response](patterns: String*)(session: TSessionHandle, call: => Response)(
      operation: Response => TOperationHandle, refused: TStatus => Response): Response =
    try {
      patterns.filter(_ != null).foreach(Bounds.pattern)
      answered(session, true, call)(operation, refused)
    } catch { case pattern: UnsupportedOperationException => refused(status(new Ended(pattern.getMessage))) }

  private def answered[Response](session: TSessionHandle, waits: Boolean, call: => Response, length: Int = 0)(
      operation: Response => TOperationHandle, refused: TStatus => Response): Response = try {
    val handle = new SessionHandle(session)
    Option(sessions.get(handle)).foreach(_.usedAt = System.nanoTime())
    if (statements.values.asScala.count(_.session == handle) >= Door.mostOperations) {
      throw new Ended(s"this session has ${Door.mostOperations} open operations, as many as one may have; close some")
    }
    val statement = fairness.begin(service.getSessionManager.getSession(handle).getUsername, handle)
    statement.length = length
    val response = fairness.workers.call(statement, waits)(call)
    Option(operation(response)) match {
      case Some(known) => statements.put(new OperationHandle(known), statement)
      case None => fairness.forget(statement)
    }
    response
  } catch {
    case ended: Ended => refused(status(ended))
    case unknown: HiveSQLException => refused(HiveSQLException.toTStatus(unknown))
  }

  override def FetchResults(request: TFetchResultsReq): TFetchResultsResp = statements.get(new OperationHandle(request.getOperationHandle)) match {
    case null => super.FetchResults(request)
    case statement =>
      Option(sessions.get(statement.session)).foreach(_.usedAt = System.nanoTime())
      try fairness.workers.call(statement, waits = true)(super.FetchResults(request))
      catch { case ended: Ended => new TFetchResultsResp(status(ended)) }
  }

  override def GetOperationStatus(request: TGetOperationStatusReq): TGetOperationStatusResp = {
    val statement = statements.get(new OperationHandle(request.getOperationHandle))
    if (statement == null || !statement.ended.isDone) super.GetOperationStatus(request)
    else {
      val response = new TGetOperationStatusResp(new TStatus(TStatusCode.SUCCESS_STATUS))
      response.setOperationState(TOperationState.ERROR_STATE)
      response.setErrorMessage(statement.ended.join())
      response
    }
  }

  override def CloseOperation(request: TCloseOperationReq): TCloseOperationResp = {
    Option(statements.remove(new OperationHandle(request.getOperationHandle))).foreach(fairness.forget)
    super.CloseOperation(request)
  }

  private def status(ended: Ended): TStatus = {
    val status = new TStatus(TStatusCode.ERROR_STATUS)
    status.setErrorMessage(ended.getMessage)
    status
  }
}

/** A session: whose it is, and the connection on which it was opened. */
class OpenedSession(val user: String, val connection: Connection) {
  @volatile var usedAt: Long = System.nanoTime()
}

object Door {
  val longestName = 256
  val mostSessions = 400
  /** Of a session. */
  val mostOperations = 100
  /** Characters of a statement that counts as long, and of all long ones whose operations are open. */
  val (shortText, openText) = (10000, 4000000)
  private val (text, number) = ("CAST(NULL AS string) AS ", "CAST(NULL AS int) AS ")
  // As JDBC names them.
  private val primaryKeys = Seq("TABLE_CAT", "TABLE_SCHEM", "TABLE_NAME", "COLUMN_NAME").map(text + _) ++ Seq(s"${number}KEY_SEQ", s"${text}PK_NAME")
  private val crossReference = Seq("PKTABLE_CAT", "PKTABLE_SCHEM", "PKTABLE_NAME", "PKCOLUMN_NAME", "FKTABLE_CAT", "FKTABLE_SCHEM", "FKTABLE_NAME",
    "FKCOLUMN_NAME").map(text + _) ++ Seq("KEY_SEQ", "UPDATE_RULE", "DELETE_RULE").map(number + _) ++ Seq("FK_NAME", "PK_NAME").map(text + _) :+
    s"${number}DEFERRABILITY"
  /** Of what a list or a map of a message may hold: clients send some dozens of settings. */
  val mostInOne = 10000
  private val prefixes = Seq("", "set:hiveconf:")

  /** `use:database` becomes the statement USE, which is checked as any other. */
  def isAllowed(name: String): Boolean = name == "use:database" || prefixes.exists(prefix => Allowed.settings.exists(prefix + _ == name))
}
