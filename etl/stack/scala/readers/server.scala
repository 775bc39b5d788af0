// The readers server: Spark's HiveServer2-protocol server with a door of its own, at which what clients send is looked at first.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.hive.thriftserver

import scala.jdk.CollectionConverters._

import org.apache.hadoop.hive.common.ServerUtils
import org.apache.hadoop.hive.conf.HiveConf
import org.apache.hive.service.cli.CLIService
import org.apache.hive.service.cli.thrift.ThriftBinaryCLIService
import org.apache.hive.service.server.HiveServer2
import org.apache.hive.service.rpc.thrift.{TOpenSessionReq, TOpenSessionResp}
import org.apache.spark.internal.Logging
import org.apache.spark.sql.SparkSession
import org.apache.spark.sql.hive.HiveUtils
import org.apache.spark.sql.hive.thriftserver.ReflectionUtils._
import org.apache.spark.sql.hive.thriftserver.ui.{HiveThriftServer2EventManager, HiveThriftServer2Listener}
import org.apache.spark.sql.warehouse.Allowed
import org.apache.spark.status.ElementTrackingStore
import org.apache.spark.util.{ShutdownHookManager, Utils}

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
  override def init(conf: HiveConf): Unit = {
    val service = new SparkSQLCLIService(this, session)
    val door = new Door(service)
    for ((name, part) <- Seq("cliService" -> service, "thriftCLIService" -> door)) {
      setSuperField(this, name, part)
      addService(part)
    }
    initCompositeService(conf)
  }
}

/** Every call of a client comes through here. */
class Door(service: CLIService) extends ThriftBinaryCLIService(service) {
  /** Open a session without the settings that it may not have: `set:system:` would change the whole server before any statement. */
  override def OpenSession(request: TOpenSessionReq): TOpenSessionResp = {
    if (request.isSetConfiguration) {
      request.setConfiguration(request.getConfiguration.asScala.filter { case (name, _) => Door.isAllowed(name) }.asJava)
    }
    super.OpenSession(request)
  }
}

object Door {
  private val prefixes = Seq("", "set:hiveconf:")

  /** `use:database` becomes the statement USE, which is checked as any other. */
  def isAllowed(name: String): Boolean = name == "use:database" || prefixes.exists(prefix => Allowed.settings.exists(prefix + _ == name))
}
