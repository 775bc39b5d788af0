// Hive Metastore on one address. Version 3.1 listens on all of them, and asks nobody for a password; Hive 4 has the setting that it lacks
// (metastore.thrift.bind.host). As HiveMetaStore.main, without what is off here: SASL, TLS, compaction, metrics.
// Usage: <class> ADDRESS PORT. Compiled by etl/stack/jars.py.
package org.apache.hadoop.hive.metastore

import java.net.InetSocketAddress

import org.apache.hadoop.hive.metastore.conf.MetastoreConf
import org.apache.hadoop.hive.metastore.conf.MetastoreConf.ConfVars
import org.apache.hadoop.hive.metastore.security.TUGIContainingTransport
import org.apache.thrift.protocol.{TBinaryProtocol, TProtocol}
import org.apache.thrift.server.{ServerContext, TServerEventHandler, TThreadPoolServer}
import org.apache.thrift.transport.{TServerSocket, TTransport}

object Main {
  /** A connection has its thread for as long as it lasts; what it opened in the database is closed with it. */
  private class Closing extends TServerEventHandler {
    private val close = of("cleanupRawStore")

    override def preServe(): Unit = ()
    override def createContext(in: TProtocol, out: TProtocol): ServerContext = null
    override def processContext(context: ServerContext, in: TTransport, out: TTransport): Unit = ()
    override def deleteContext(context: ServerContext, in: TProtocol, out: TProtocol): Unit = close.invoke(null)
  }

  private def of(name: String) = {
    val method = classOf[HiveMetaStore].getDeclaredMethod(name)
    method.setAccessible(true)
    method
  }

  def main(arguments: Array[String]): Unit = {
    val remote = classOf[HiveMetaStore].getDeclaredField("isMetaStoreRemote")
    remote.setAccessible(true)
    remote.setBoolean(null, true)

    val conf = MetastoreConf.newMetastoreConf()
    val largest = MetastoreConf.getLongVar(conf, ConfVars.SERVER_MAX_MESSAGE_SIZE)
    val handler = RetryingHMSHandler.getProxy(conf, new HiveMetaStore.HMSHandler("metastore", conf, false), false)
    val socket = new TServerSocketKeepAlive(new TServerSocket(new InetSocketAddress(arguments(0), arguments(1).toInt)))
    val server = new TThreadPoolServer(
      new TThreadPoolServer.Args(socket)
        .processor(new TUGIBasedProcessor[IHMSHandler](handler))
        .transportFactory(new TUGIContainingTransport.Factory())
        .protocolFactory(new TBinaryProtocol.Factory())
        .inputProtocolFactory(new TBinaryProtocol.Factory(true, true, largest, largest))
        .minWorkerThreads(MetastoreConf.getIntVar(conf, ConfVars.SERVER_MIN_THREADS))
        .maxWorkerThreads(MetastoreConf.getIntVar(conf, ConfVars.SERVER_MAX_THREADS)))
    server.setServerEventHandler(new Closing)
    server.serve()
  }
}
