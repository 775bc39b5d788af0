// Connections to the readers server before and after the log-in: what a client announces takes no memory before it is there, and a connection
// without a session does not stay. SASL's transport takes what it is told (100 MB), and each connection has a thread of Thrift's for itself.
// Compiled by etl/stack/jars.py.
package org.apache.spark.sql.hive.thriftserver

import java.net.Socket
import java.nio.ByteBuffer

import scala.collection.mutable

import org.apache.thrift.transport.{TServerTransport, TSocket, TTransport, TTransportException}

/** Accepts connections; of those without a session, the oldest is closed when there are too many. */
class Connections(door: TServerTransport) extends TServerTransport {
  private val idle = mutable.LinkedHashSet[Connection]()

  override def listen(): Unit = door.listen()
  override def close(): Unit = door.close()
  override def interrupt(): Unit = door.interrupt()

  override def accept(): TTransport = {
    val connection = new Connection(door.accept().asInstanceOf[TSocket].getSocket, this)
    val oldest = synchronized {
      idle += connection
      if (idle.size > Connections.mostIdle) idle.headOption else None
    }
    oldest.foreach(_.close())
    connection
  }

  private[thriftserver] def setIdle(connection: Connection, isIdle: Boolean): Unit = synchronized {
    if (isIdle) idle += connection else idle -= connection
  }
}

object Connections {
  val mostIdle = 100
  val idleMillis = 20000
  /** A user's name and password. */
  val loginBytes = 64 << 10
  /** A statement of a million characters, of four bytes each, and what is around it. */
  val messageBytes = 8 << 20
  private[thriftserver] val current = new ThreadLocal[Connection]

  /** Count a session of the connection that this thread serves. */
  def opened(): Unit = Option(current.get).foreach(_.sessions(1))
  def closed(): Unit = Option(current.get).foreach(_.sessions(-1))
}

/** Looks at the length that stands before each message: a status and four bytes until the log-in is complete, then four bytes. */
class Connection(socket: Socket, all: Connections) extends TSocket(socket) {
  private val head = ByteBuffer.allocate(5)
  private var isLoggedIn = false
  private var left, opened = 0

  setTimeout(Connections.idleMillis)

  override def read(target: Array[Byte], offset: Int, length: Int): Int = {
    Connections.current.set(this)
    val count = super.read(target, offset, length)
    for (at <- offset until offset + count) see(target(at))
    count
  }

  private def see(byte: Byte): Unit =
    if (left > 0) left -= 1
    else {
      head.put(byte)
      val length = if (isLoggedIn) 4 else 5
      if (head.position == length) {
        left = head.getInt(length - 4)
        head.clear()
        val most = if (isLoggedIn) Connections.messageBytes else Connections.loginBytes
        if (left < 0 || left > most) {
          throw new TTransportException(s"a message of $left bytes is refused: $most are allowed")
        }
      }
    }

  override def write(bytes: Array[Byte], offset: Int, length: Int): Unit = {
    // SASL's header: status 5 says that the log-in is complete.
    if (!isLoggedIn && length == 5 && bytes(offset) == 5) isLoggedIn = true
    super.write(bytes, offset, length)
  }

  def sessions(change: Int): Unit = {
    opened += change
    setTimeout(if (opened > 0) 0 else Connections.idleMillis)
    all.setIdle(this, opened <= 0)
  }

  override def close(): Unit = {
    all.setIdle(this, isIdle = false)
    super.close()
  }
}
