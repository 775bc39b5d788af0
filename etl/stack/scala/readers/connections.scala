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
  private val open = mutable.Set[Connection]()
  private var arriving = 0L

  override def listen(): Unit = door.listen()
  override def close(): Unit = door.close()
  override def interrupt(): Unit = door.interrupt()

  override def accept(): TTransport = {
    val connection = new Connection(door.accept().asInstanceOf[TSocket].getSocket, this)
    val oldest = synchronized {
      idle += connection
      open += connection
      if (idle.size > Connections.mostIdle) idle.headOption
      else if (open.size > Connections.most) open.filterNot(_.isAnswering).minByOption(_.usedAt)
      else None
    }
    oldest.foreach(_.close())
    connection
  }

  /** Take memory for a message that arrives, for that of all connections together is bounded; false where there is too much. */
  private[thriftserver] def reserve(bytes: Int): Boolean = synchronized {
    val fits = arriving + bytes <= Connections.arrivingBytes
    if (fits) arriving += bytes
    fits
  }

  private[thriftserver] def forget(connection: Connection): Unit = synchronized {
    idle -= connection
    open -= connection
  }

  private[thriftserver] def free(bytes: Int): Unit = synchronized { arriving -= bytes }

  private[thriftserver] def setIdle(connection: Connection, isIdle: Boolean): Unit = synchronized {
    if (isIdle && open(connection)) idle += connection else idle -= connection
  }
}

object Connections {
  val mostIdle = 100
  /** Of all: each has a thread, of which there are 500. The one that has been silent longest is closed for a new one. */
  val most = 400
  val idleMillis = 20000
  /** A user's name and password. */
  val loginBytes = 64 << 10
  /** A statement of a million characters, of four bytes each, and what is around it. */
  val messageBytes = 8 << 20
  /** Of all messages that have begun and not ended; those of a log-in's size do not count. */
  val arrivingBytes = 64 << 20
  /** From the first byte of a message to its last. */
  val messageMillis = 120000
  private[thriftserver] val current = new ThreadLocal[Connection]
}

/** Looks at the length that stands before each message: a status and four bytes until the log-in is complete, then four bytes. */
class Connection(socket: Socket, all: Connections) extends TSocket(socket) {
  private val head = ByteBuffer.allocate(5)
  private var isLoggedIn = false
  private var left, opened, reserved = 0
  private var begun = 0L
  @volatile private[thriftserver] var usedAt: Long = System.nanoTime()
  /** A message is here and has no answer yet. */
  @volatile private[thriftserver] var isAnswering = false

  setTimeout(Connections.idleMillis)

  override def read(target: Array[Byte], offset: Int, length: Int): Int = {
    Connections.current.set(this)
    val count = super.read(target, offset, length)
    usedAt = System.nanoTime()
    val wasInside = isInside
    for (at <- offset until offset + count) see(target(at))
    if (isInside != wasInside) {
      begun = System.nanoTime()
      setTimeout()
    } else if (isInside && (System.nanoTime() - begun) / 1000000 > Connections.messageMillis) {
      throw new TTransportException(s"a message took longer than ${Connections.messageMillis / 1000} s")
    }
    count
  }

  private def isInside: Boolean = left > 0 || head.position > 0

  /** Between two messages an open session may be idle. */
  private def setTimeout(): Unit = if (!socket.isClosed) setTimeout(if (opened > 0 && !isInside) 0 else Connections.idleMillis)

  private def release(): Unit = synchronized {
    all.free(reserved)
    reserved = 0
  }

  private def see(byte: Byte): Unit =
    if (left > 0) {
      left -= 1
      if (left == 0) {
        isAnswering = true
        release()
      }
    } else {
      head.put(byte)
      val length = if (isLoggedIn) 4 else 5
      if (head.position == length) {
        left = head.getInt(length - 4)
        head.clear()
        val most = if (isLoggedIn) Connections.messageBytes else Connections.loginBytes
        if (left < 0 || left > most) {
          throw new TTransportException(s"a message of $left bytes is refused: $most are allowed")
        }
        if (left > Connections.loginBytes) {
          if (!all.reserve(left)) throw new TTransportException(s"a message of $left bytes is refused: too many arrive at once")
          reserved = left
        }
      }
    }

  override def write(bytes: Array[Byte], offset: Int, length: Int): Unit = {
    // SASL's header: status 5 says that the log-in is complete.
    if (!isLoggedIn && length == 5 && bytes(offset) == 5) isLoggedIn = true
    super.write(bytes, offset, length)
    isAnswering = false
    usedAt = System.nanoTime()
  }

  /** Count a session that was opened here, or the end of one. */
  def sessions(change: Int): Unit = synchronized {
    opened += change
    // The time-out of a read that waits already cannot be changed, as where another connection ended the session.
    if (opened <= 0 && Connections.current.get != this) close()
    else {
      setTimeout()
      all.setIdle(this, opened <= 0)
    }
  }

  override def close(): Unit = {
    all.forget(this)
    release()
    super.close()
  }
}
