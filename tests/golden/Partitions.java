import java.nio.charset.StandardCharsets;
import java.util.*;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.producer.*;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.utils.Utils;

/**
 * Writes, as JSON, the partitions that the Java producer chooses for keys of many lengths.
 * Run with the jars of kafka_2.13 on the class path: java -cp 'LIBS/*' Partitions.java HOST:PORT java_partitions.json
 */
public class Partitions {
    public static void main(String[] args) throws Exception {
        List<String> keys = new ArrayList<>(List.of("", "21", "foobar", "a-little-bit-long-string", "a-little-bit-longer-string", "abc", "kafka", "1234",
            "Österreich", "10711fa5", "\"10711fa5\"", "{\"schema\":{\"type\":\"string\",\"optional\":false},\"payload\":\"10711fa5\"}", "日本語", "🦀", "é", "a b\tc", "ß".repeat(40)));
        Random random = new Random(7);
        for (int length = 1; length <= 64; length++) {
            StringBuilder key = new StringBuilder();
            for (int i = 0; i < length; i++) key.append((char) (33 + random.nextInt(94)));
            keys.add(key.toString());
        }
        keys.add("x".repeat(1000));
        int[] counts = {1, 2, 7, 12};
        Properties properties = new Properties();
        properties.put("bootstrap.servers", args[0]);
        properties.put("key.serializer", ByteArraySerializer.class.getName());
        properties.put("value.serializer", ByteArraySerializer.class.getName());
        try (java.io.PrintStream out = new java.io.PrintStream(args[1], "UTF-8"); Admin admin = Admin.create(properties); KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(properties)) {
            List<NewTopic> topics = new ArrayList<>();
            for (int count : counts) topics.add(new NewTopic("java-partitions-" + count, count, (short) 1));
            admin.createTopics(topics).all().get();
            out.println("[");
            for (int k = 0; k < keys.size(); k++) {
                byte[] key = keys.get(k).getBytes(StandardCharsets.UTF_8);
                StringBuilder chosen = new StringBuilder();
                for (int count : counts) {
                    int partition = producer.send(new ProducerRecord<>("java-partitions-" + count, key, new byte[0])).get().partition();
                    chosen.append(chosen.length() == 0 ? "" : ", ").append("\"").append(count).append("\": ").append(partition);
                }
                String hex = HexFormat.of().formatHex(key);
                out.printf("  {\"key_hex\": \"%s\", \"murmur2\": %d, \"partitions\": {%s}}%s%n", hex, Utils.murmur2(key), chosen, k + 1 < keys.size() ? "," : "");
            }
            out.println("]");
        }
    }
}
