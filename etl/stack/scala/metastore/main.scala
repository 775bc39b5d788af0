// Hive Metastore on one address. Version 3.1 listens on all of them, and asks nobody for a password; Hive 4 has the setting that it lacks
// (metastore.thrift.bind.host). As HiveMetaStore.main, without what is off here: SASL, TLS, compaction, metrics; and without taking on the user
// that a client names: it asks HDFS as the user of its own process. Processes of REFUSED-UID, an operating-system user, get no answer.
// Usage: <class> ADDRESS PORT [REFUSED-UID]. Compiled by etl/stack/jars.py.
package org.apache.hadoop.hive.metastore

import java.net.InetSocketAddress

import org.apache.hadoop.hive.metastore.api.ThriftHiveMetastore
import org.apache.hadoop.hive.metastore.conf.MetastoreConf
import org.apache.hadoop.hive.metastore.conf.MetastoreConf.ConfVars
import org.apache.thrift.protocol.{TBinaryProtocol, TProtocol}
import org.apache.thrift.server.{ServerContext, TServerEventHandler, TThreadPoolServer}
import org.apache.thrift.transport.{TServerSocket, TSocket, TTransport, TTransportException}

import warehouse.Readers

object Main {
  /** A connection has its thread for as long as it lasts; what it opened in the database is closed with it. */
  private class Closing extends TServerEventHandler {
    private val close = of("cleanupRawStore")

    override def preServe(): Unit = ()
    override def createContext(in: TProtocol, out: TProtocol): ServerContext = null
    override def processContext(context: ServerContext, in: TTransport, out: TTransport): Unit = ()
    override def deleteContext(context: ServerContext, in: TProtocol, out: TProtocol): Unit = close.invoke(null)
  }

  private class Checked(address: InetSocketAddress, refused: Option[Readers]) extends TServerSocketKeepAlive(new TServerSocket(address)) {
    override def acceptImpl(): TSocket = {
      val accepted = super.acceptImpl()
      val socket = accepted.getSocket
      def end(address: java.net.SocketAddress) = address.asInstanceOf[InetSocketAddress]
      try {
        if (refused.exists(_.hold(socket, end(socket.getRemoteSocketAddress), end(socket.getLocalSocketAddress)))) {
          throw new TTransportException("a process of the readers' operating-system user may not ask this metastore")
        }
        accepted
      } catch {
        case problem: Exception =>
          accepted.close()
          throw new TTransportException(problem.getMessage)
      }
    }
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
    val socket = new Checked(new InetSocketAddress(arguments(0), arguments(1).toInt), arguments.lift(2).map(uid => Readers(uid.toInt, "")))
    val server = new TThreadPoolServer(
      new TThreadPoolServer.Args(socket)
        .processor(new ThriftHiveMetastore.Processor[IHMSHandler](handler))
        .protocolFactory(new TBinaryProtocol.Factory())
        .inputProtocolFactory(new TBinaryProtocol.Factory(true, true, largest, largest))
        .minWorkerThreads(MetastoreConf.getIntVar(conf, ConfVars.SERVER_MIN_THREADS))
        .maxWorkerThreads(MetastoreConf.getIntVar(conf, ConfVars.SERVER_MAX_THREADS)))
    server.setServerEventHandler(new Closing)
    server.serve()
  }
}
