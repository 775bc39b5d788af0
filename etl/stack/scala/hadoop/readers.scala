// What a Hadoop server is told about the readers' operating-system user. Compiled by etl/stack/jars.py.
package warehouse

import org.apache.hadoop.conf.Configuration

object ReadersOf {
  val Uid = "warehouse.readers.uid"
  val Name = "warehouse.readers.user"

  def apply(configuration: Configuration): Readers = {
    def given(name: String) = Option(configuration.get(name)).getOrElse(throw new IllegalArgumentException(s"core-site.xml has no $name"))
    Readers(given(Uid).toInt, given(Name))
  }
}
