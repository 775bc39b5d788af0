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
    val transport = classOf[TServer].getDeclaredField("serverTransport_")
    transport.setAccessible(true)
    transport.set(server, new Connections(transport.get(server).asInstanceOf[TServerTransport]))
  }

  private val users = new ConcurrentHashMap[SessionHandle, String]
  /** By operation: a query is planned and run while its rows are fetched. */
  private val statements = new ConcurrentHashMap[OperationHandle, Statement]

  /** Open a session without the settings that it may not have: `set:system:` would change the whole server before any statement. */
  override def OpenSession(request: TOpenSessionReq): TOpenSessionResp = {
    if (request.isSetConfiguration) {
      request.setConfiguration(request.getConfiguration.asScala.filter { case (name, _) => Door.isAllowed(name) }.asJava)
    }
    forgetLostSessions()
    val user = Option(TSetIpAddressProcessor.getUserName).orElse(Option(request.getUsername)).getOrElse("")
    try {
      fairness.refuseIfRestarting()
      if (users.values.asScala.count(_ == user) >= Fairness.sessionsOfUser) {
        throw new Ended(s"$user has ${Fairness.sessionsOfUser} open sessions, as many as one user may have; close some")
      }
      val response = super.OpenSession(request)
      if (response.isSetSessionHandle) {
        users.put(new SessionHandle(response.getSessionHandle), user)
        Connections.opened()
      }
      response
    } catch { case ended: Ended => new TOpenSessionResp(status(ended), TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V10) }
  }

  /** A client that goes away without a word has its session closed behind this door. */
  private def forgetLostSessions(): Unit =
    for (session <- users.keySet.asScala if Try(service.getSessionManager.getSession(session)).isFailure) forget(session)

  private def forget(session: SessionHandle): Unit = {
    users.remove(session)
    statements.values.removeIf(_.session == session)
    fairness.forgetSession(session)
  }

  override def CloseSession(request: TCloseSessionReq): TCloseSessionResp = {
    val response = super.CloseSession(request)
    if (response.getStatus.getStatusCode == TStatusCode.SUCCESS_STATUS) Connections.closed()
    forget(new SessionHandle(request.getSessionHandle))
    response
  }

  override def ExecuteStatement(request: TExecuteStatementReq): TExecuteStatementResp =
    // Before anything keeps the text.
    if (request.getStatement.length > Bounds.characters) new TExecuteStatementResp(status(new Ended(Bounds.tooLong(request.getStatement))))
    else answered(request.getSessionHandle, !request.isRunAsync, super.ExecuteStatement(request))(_.getOperationHandle, status =>
      new TExecuteStatementResp(status))

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

  private def answered[Response](session: TSessionHandle, waits: Boolean, call: => Response)(
      operation: Response => TOperationHandle, refused: TStatus => Response): Response = try {
    val handle = new SessionHandle(session)
    val statement = fairness.begin(service.getSessionManager.getSession(handle).getUsername, handle)
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

object Door {
  private val prefixes = Seq("", "set:hiveconf:")

  /** `use:database` becomes the statement USE, which is checked as any other. */
  def isAllowed(name: String): Boolean = name == "use:database" || prefixes.exists(prefix => Allowed.settings.exists(prefix + _ == name))
}
