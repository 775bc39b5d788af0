// Which operating-system user holds the other end of a connection within this machine: Linux lists it in /proc/net.
// Compiled by etl/stack/jars.py, into the Hadoop servers' checks and into the metastore's.
package warehouse

import java.io.IOException
import java.net.{Inet4Address, InetAddress, InetSocketAddress, NetworkInterface}
import java.nio.ByteOrder
import java.nio.file.{Files, Path}
import java.util.{Collections, WeakHashMap}

import scala.io.Source
import scala.util.Using

/** The readers' operating-system user, and the one user name that its processes may claim. */
final case class Readers(uid: Int, name: String) {
  /** By the connection itself, for addresses are used again. */
  private val known = Collections.synchronizedMap(new WeakHashMap[AnyRef, java.lang.Boolean])

  /** Whether a process of that user is at the other end; looked up once a connection, for that takes some 20 ms. */
  def hold(connection: AnyRef, peer: InetSocketAddress, here: InetSocketAddress): Boolean = Option(known.get(connection)).fold {
    val found = Peers.isLocal(peer.getAddress) && Peers.owner(peer, here).getOrElse(throw new PeerGone(peer)) == uid
    known.put(connection, found)
    found
  }(_.booleanValue)
}

class PeerGone(peer: InetSocketAddress)
  extends IOException(s"the process at ${peer.getAddress.getHostAddress}:${peer.getPort} has closed its connection: nobody can say whose it was")

object Peers {
  private val Tables = List("tcp", "tcp6").map(Path.of("/proc/net", _))
  /** The table is not read at one moment: a row may be missed while others are removed. */
  private val Attempts = 3
  private val Established = "01"

  /** Connections of other machines and of containers with a network of their own are in no table of this one. */
  def isLocal(address: InetAddress): Boolean = address.isLoopbackAddress || NetworkInterface.getByInetAddress(address) != null

  /** User of the process at `peer`; None where its socket is closed. The kernel says 0, as for root, of a socket that is being closed: it counts if it is open afterwards. */
  def owner(peer: InetSocketAddress, here: InetSocketAddress): Option[Int] =
    Iterator.fill(Attempts)(row(peer, here)).collectFirst { case Some(found) if row(peer, here).contains(found) => found._1 }

  /** User and inode of an open socket. */
  private def row(peer: InetSocketAddress, here: InetSocketAddress): Option[(Int, String)] = {
    val sought = for (from <- texts(peer.getAddress); to <- texts(here.getAddress)) yield f" $from:${peer.getPort}%04X $to:${here.getPort}%04X $Established "
    val lines = Tables.iterator.filter(Files.exists(_)).flatMap { table =>
      Using.resource(Source.fromFile(table.toFile, "US-ASCII"))(_.getLines().find(line => sought.exists(line.contains(_))))
    }
    lines.map(_.trim.split(" +")).find(fields => fields(9) != "0").map(fields => (fields(7).toInt, fields(9)))
  }

  /** An address as the tables write it: words in the machine's order; one of IPv4 may stand in the table of IPv6. */
  private def texts(address: InetAddress): List[String] = {
    val bytes = if (ByteOrder.nativeOrder == ByteOrder.LITTLE_ENDIAN) address.getAddress.grouped(4).flatMap(_.reverse) else address.getAddress.iterator
    val text = bytes.map(byte => f"$byte%02X").mkString
    address match {
      case _: Inet4Address => List(text, Mapped + text)
      case _ => List(text)
    }
  }

  private val Mapped = "0" * 16 + (if (ByteOrder.nativeOrder == ByteOrder.LITTLE_ENDIAN) "FFFF0000" else "0000FFFF")
}
