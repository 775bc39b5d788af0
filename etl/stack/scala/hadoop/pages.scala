// The same check before what Hadoop's servers answer over HTTP: WebHDFS believes `user.name`, YARN runs a program of whoever asks, and logs and
// metrics are nobody's. Processes of the readers' operating-system user may ask WebHDFS under their own name, and nothing else.
// NameNode and YARN: `hadoop.http.filter.initializers`; the DataNode's WebHDFS: `dfs.datanode.httpserver.filter.handlers`.
// Compiled by etl/stack/jars.py.
package warehouse

import java.net.{InetAddress, InetSocketAddress}
import java.nio.charset.StandardCharsets.UTF_8
import java.util.{Locale, Map => JavaMap}

import scala.jdk.CollectionConverters._

import org.apache.hadoop.conf.Configuration
import org.apache.hadoop.http.{FilterContainer, FilterInitializer}
import org.apache.hadoop.shaded.io.netty.buffer.Unpooled
import org.apache.hadoop.shaded.io.netty.channel.ChannelHandler.Sharable
import org.apache.hadoop.shaded.io.netty.channel.{ChannelFutureListener, ChannelHandlerContext, ChannelInboundHandlerAdapter}
import org.apache.hadoop.shaded.io.netty.handler.codec.http.{DefaultFullHttpResponse, HttpRequest, HttpResponseStatus, HttpVersion, QueryStringDecoder}
import org.apache.hadoop.shaded.io.netty.util.ReferenceCountUtil
import org.apache.hadoop.shaded.javax.servlet.http.{HttpServletRequest, HttpServletResponse}
import org.apache.hadoop.shaded.javax.servlet.{Filter, FilterChain, FilterConfig, ServletRequest, ServletResponse}
import org.apache.hadoop.shaded.org.eclipse.jetty.server.Request

object CheckedPages {
  val WebHdfs = "/webhdfs/v1"
  /** Parameters that say who asks, whatever their case. */
  private val User = "user.name"
  private val Others = Set("doas", "delegation", "ugi")

  /** Why a request is refused, whose process is at `peer`. */
  def problem(
      readers: Readers, connection: AnyRef, peer: InetSocketAddress, here: InetSocketAddress, path: String, isWebHdfs: Boolean,
      parameters: Iterable[(String, Seq[String])]): Option[String] = {
    val names = parameters.map { case (name, values) => (name.toLowerCase(Locale.ROOT), values) }
    val isOwn = names.filter(_._1 == User).flatMap(_._2).toList == List(readers.name) && !names.exists(one => Others(one._1))
    try {
      if (isWebHdfs && isOwn || !readers.hold(connection, peer, here)) None
      else if (isWebHdfs) Some(s"a process of the readers' operating-system user may ask with user.name=${readers.name} only")
      else Some(s"a process of the readers' operating-system user may not ask for $path")
    } catch { case gone: PeerGone => Some(gone.getMessage) }
  }
}

class CheckedPages extends FilterInitializer {
  override def initFilter(container: FilterContainer, configuration: Configuration): Unit = {
    val readers = ReadersOf(configuration)
    container.addGlobalFilter("readers", classOf[PageFilter].getName, JavaMap.of(ReadersOf.Uid, readers.uid.toString, ReadersOf.Name, readers.name))
  }
}

class PageFilter extends Filter {
  private var readers: Readers = _

  override def init(given: FilterConfig): Unit = readers = Readers(given.getInitParameter(ReadersOf.Uid).toInt, given.getInitParameter(ReadersOf.Name))
  override def destroy(): Unit = ()

  override def doFilter(request: ServletRequest, response: ServletResponse, chain: FilterChain): Unit = {
    val page = request.asInstanceOf[HttpServletRequest]
    val peer = new InetSocketAddress(InetAddress.getByName(page.getRemoteAddr), page.getRemotePort)
    val here = new InetSocketAddress(InetAddress.getByName(page.getLocalAddr), page.getLocalPort)
    // What the servlets read too: parameters of the address and of a form.
    val parameters = page.getParameterMap.asScala.view.mapValues(_.toSeq).toSeq
    // The servlet that answers, whatever the address looks like.
    val isWebHdfs = page.getContextPath.isEmpty && page.getServletPath == CheckedPages.WebHdfs
    val connection = Request.getBaseRequest(request).getHttpChannel.getEndPoint
    CheckedPages.problem(readers, connection, peer, here, page.getRequestURI, isWebHdfs, parameters) match {
      case Some(sentence) =>
        // Not by sendError: Jetty would answer a PUT without the sentence.
        response.asInstanceOf[HttpServletResponse].setStatus(HttpServletResponse.SC_FORBIDDEN)
        response.setContentType("text/plain;charset=utf-8")
        response.getWriter.println(sentence)
      case None => chain.doFilter(request, response)
    }
  }
}

@Sharable
class CheckedRequests(readers: Readers) extends ChannelInboundHandlerAdapter {
  override def channelRead(context: ChannelHandlerContext, message: Object): Unit = message match {
    case request: HttpRequest =>
      val asked = new QueryStringDecoder(request.uri)
      def address(one: Any) = one.asInstanceOf[InetSocketAddress]
      val parameters = asked.parameters.asScala.view.mapValues(_.asScala.toSeq).toSeq
      // As the DataNode tells them apart.
      val isWebHdfs = request.uri.startsWith(CheckedPages.WebHdfs)
      val channel = context.channel
      CheckedPages.problem(readers, channel, address(channel.remoteAddress), address(channel.localAddress), asked.path, isWebHdfs, parameters) match {
        case Some(sentence) =>
          ReferenceCountUtil.release(message)
          val refusal = new DefaultFullHttpResponse(HttpVersion.HTTP_1_1, HttpResponseStatus.FORBIDDEN, Unpooled.copiedBuffer(sentence + "\n", UTF_8))
          refusal.headers.set("Connection", "close").set("Content-Length", refusal.content.readableBytes.toString)
          context.writeAndFlush(refusal).addListener(ChannelFutureListener.CLOSE)
        case None => context.fireChannelRead(message)
      }
    case _ => context.fireChannelRead(message)
  }
}

object CheckedRequests {
  /** Called by the DataNode, once. */
  def initializeState(configuration: Configuration): Readers = ReadersOf(configuration)
}
