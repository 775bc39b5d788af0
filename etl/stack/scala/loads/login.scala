// Who may log in to the loads server: whoever has its password. Compiled by etl/stack/jars.py.
package warehouse

import java.nio.charset.StandardCharsets.UTF_8
import java.security.MessageDigest
import javax.security.sasl.AuthenticationException

import org.apache.hive.service.auth.PasswdAuthenticationProvider

class LoadsLogin extends PasswdAuthenticationProvider {
  // Spark Connect's variable: both doors have one key.
  private val known = Option(System.getenv("SPARK_CONNECT_AUTHENTICATE_TOKEN")).filter(_.nonEmpty)
    .getOrElse(throw new IllegalStateException("the loads server has no password: its configuration folder lacks spark-env.sh"))

  override def Authenticate(user: String, password: String): Unit =
    if (password == null || !MessageDigest.isEqual(password.getBytes(UTF_8), known.getBytes(UTF_8))) {
      throw new AuthenticationException("wrong password of the loads server")
    }
}
