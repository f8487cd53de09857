/* rabbitmq-c in C, one acknowledgement a message: the limit of what a client can do.
 *
 * Arguments and answer as in contract.py; it takes the number out of the body without parsing
 * the JSON.
 */

#if __has_include(<rabbitmq-c/amqp.h>)
#include <rabbitmq-c/amqp.h>
#include <rabbitmq-c/tcp_socket.h>
#else
#include <amqp.h>
#include <amqp_tcp_socket.h>
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static void check(int is_good, const char *what) {
    if (!is_good) {
        fprintf(stderr, "failed: %s\n", what);
        exit(1);
    }
}

static void check_reply(amqp_rpc_reply_t reply, const char *what) {
    check(reply.reply_type == AMQP_RESPONSE_NORMAL, what);
}

static double wall_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static long resident_kb(void) {
    long size, resident = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    check(statm && fscanf(statm, "%ld %ld", &size, &resident) == 2, "reading statm");
    fclose(statm);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

/* The number in a body that begins with {"n": 123, */
static long number_of(amqp_bytes_t body) {
    static const char prefix[] = "{\"n\": ";
    check(body.len > sizeof prefix && !memcmp(body.bytes, prefix, sizeof prefix - 1), "the body");
    return strtol((char *)body.bytes + sizeof prefix - 1, NULL, 10);
}

int main(int argc, char **argv) {
    check(argc >= 5, "arguments: URL QUEUE COUNT PREFETCH");
    long count = atol(argv[3]), missing = 0, repeated = 0;
    unsigned char *seen = calloc(count, 1);
    struct amqp_connection_info info;
    check(!amqp_parse_url(argv[1], &info), "parsing the URL");

    amqp_connection_state_t connection = amqp_new_connection();
    amqp_socket_t *socket = amqp_tcp_socket_new(connection);
    check(socket && !amqp_socket_open(socket, info.host, info.port), "connecting");
    check_reply(amqp_login(connection, info.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, info.user,
                           info.password),
                "login");
    amqp_channel_open(connection, 1);
    check_reply(amqp_get_rpc_reply(connection), "opening a channel");
    amqp_basic_qos(connection, 1, 0, atoi(argv[4]), 0);
    check_reply(amqp_get_rpc_reply(connection), "qos");
    amqp_basic_consume(connection, 1, amqp_cstring_bytes(argv[2]), amqp_empty_bytes, 0, 0, 0,
                       amqp_empty_table);
    check_reply(amqp_get_rpc_reply(connection), "consume");

    double wall = 0, cpu = 0;
    for (long taken = 0; taken < count; taken++) {
        amqp_envelope_t envelope;
        amqp_maybe_release_buffers(connection);
        check_reply(amqp_consume_message(connection, &envelope, NULL, 0), "waiting for a message");
        if (taken == 0) {
            wall = wall_seconds();
            cpu = cpu_seconds();
        }
        long number = number_of(envelope.message.body);
        check(number >= 0 && number < count, "the number in a message");
        seen[number]++;
        check(!amqp_basic_ack(connection, 1, envelope.delivery_tag, 0), "ack");
        amqp_destroy_envelope(&envelope);
    }
    wall = wall_seconds() - wall;
    cpu = cpu_seconds() - cpu;
    check_reply(amqp_channel_close(connection, 1, AMQP_REPLY_SUCCESS), "closing the channel");
    check_reply(amqp_connection_close(connection, AMQP_REPLY_SUCCESS), "closing");

    for (long n = 0; n < count; n++) {
        missing += seen[n] == 0;
        repeated += seen[n] > 1;
    }
    printf("{\"messages\": %ld, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"rss_kb\": %ld, "
           "\"missing\": %ld, \"repeated\": %ld, \"latencies_us\": []}\n",
           count, wall, cpu, resident_kb(), missing, repeated);
    return 0;
}
