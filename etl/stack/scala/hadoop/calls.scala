// A check before every RPC call of a Hadoop server: HDFS believes the user name that a client claims, so processes of the readers'
// operating-system user may claim their own only, and may speak no protocol but the one of HDFS's clients. (A DataNode's protocol would hand
// out the keys of all blocks.) It is a call scheduler (`ipc.scheduler.impl`), since that sees each call with its connection before it waits.
// Compiled by etl/stack/jars.py.
package org.apache.hadoop.ipc

import java.net.{InetSocketAddress, Socket}

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.ipc.protobuf.RpcHeaderProtos.RpcResponseHeaderProto.{RpcErrorCodeProto, RpcStatusProto}
import org.apache.hadoop.security.{AccessControlException, UserGroupInformation}

import warehouse.{PeerGone, ReadersOf}

class CheckedCalls(levels: Int, namespace: String, configuration: Configuration) extends DefaultRpcScheduler(levels, namespace, configuration) {
  private val readers = ReadersOf(configuration)

  override def getPriorityLevel(call: Schedulable): Int = {
    call match {
      // WebHDFS's call within the server: its own check is before it.
      case _: ExternalCall[_] =>
      case _ if CheckedCalls.kind.isInstance(call) =>
        for (problem <- problem(call) if isReaders(CheckedCalls.connection.get(call).asInstanceOf[Server#Connection])) {
          refuse(s"a process of the readers' operating-system user $problem")
        }
      case _ => refuse(s"calls of ${call.getClass.getName} are not known here")
    }
    super.getPriorityLevel(call)
  }

  private def isReaders(connection: Server#Connection): Boolean = {
    val socket = CheckedCalls.socket.get(connection).asInstanceOf[Socket]
    val peer = new InetSocketAddress(connection.getHostInetAddress, connection.getRemotePort)
    try readers.hold(connection, peer, new InetSocketAddress(socket.getLocalAddress, socket.getLocalPort))
    catch { case gone: PeerGone => refuse(gone.getMessage) }
  }

  /** Why the readers may not make a call. */
  private def problem(call: Schedulable): Option[String] = {
    val claimed = Option(call.getUserGroupInformation)
    val protocol = CheckedCalls.request.get(call) match {
      case request: ProtobufRpcEngine2.RpcProtobufRequest => request.getRequestHeader.getDeclaringClassProtocolName
      case other => other.getClass.getName
    }
    if (!claimed.exists(isOwn)) Some(s"may be ${readers.name} only, not ${claimed.fold("nobody")(_.toString)}")
    else if (protocol != CheckedCalls.clients) Some(s"may not call $protocol")
    else None
  }

  // HiveServer2 is a proxy of its own user for that very user.
  private def isOwn(user: UserGroupInformation): Boolean = user.getUserName == readers.name && Option(user.getRealUser).forall(isOwn)

  private def refuse(sentence: String): Nothing = {
    Server.AUDITLOG.warn(sentence)
    throw new RefusedCall(sentence)
  }
}

object CheckedCalls {
  private val clients = "org.apache.hadoop.hdfs.protocol.ClientProtocol"
  private val kind = Class.forName("org.apache.hadoop.ipc.Server$RpcCall")
  private val connection = field(kind, "connection")
  private val request = field(kind, "rpcRequest")
  private val socket = field(classOf[Server#Connection], "socket")

  private def field(of: Class[_], name: String) = {
    val found = of.getDeclaredField(name)
    found.setAccessible(true)
    found
  }
}

/** Sent to the client, then the connection is closed. */
class RefusedCall(sentence: String) extends RpcServerException(sentence, new AccessControlException(sentence)) {
  override def getRpcStatusProto: RpcStatusProto = RpcStatusProto.FATAL
  override def getRpcErrorCodeProto: RpcErrorCodeProto = RpcErrorCodeProto.FATAL_UNAUTHORIZED
}
