/* A board on MQTT by itself: lwIP's TCP and its MQTT 3.1.1 client (BSD-3-Clause) carry what fleet.c says. Without TLS. */
#include <string.h>

#include "lwip/apps/mqtt.h"
#include "lwip/apps/mqtt_priv.h"
#include "lwip/dhcp.h"
#include "lwip/etharp.h"
#include "lwip/init.h"
#include "lwip/netif.h"
#include "lwip/timeouts.h"
#include "netif/ethernet.h"
#include "network.h"
#include "port.h"

enum { KEEP_ALIVE_S = 15, LONGEST_FRAME = 1514, FIRST_PAUSE_MS = 1000, LONGEST_PAUSE_MS = 30000 };

static sc_fleet *fleet;
static struct netif card;
static mqtt_client_t *client;
static uint8_t frame[LONGEST_FRAME + 4], request[SC_FLEET_REQUEST];
static char topic[SC_FLEET_TOPIC], will[SC_FLEET_TOPIC];
static uint32_t have, subscribed, retry_ms, pause_ms, randomness;
static uint8_t too_long, retained, connecting, has_card;

void network_fault(const char *message) {
    static const char FAULT[] = "\r\nstonechat: lwIP stops: ";
    port_write((const uint8_t *)FAULT, sizeof FAULT - 1);
    port_write((const uint8_t *)message, (uint32_t)strlen(message));
    port_write((const uint8_t *)"\r\n", 2);
    port_restart(PORT_UNKNOWN);
}

uint32_t sys_now(void) { return port_now_ms(); }

uint32_t network_random(void) { /* for port numbers and the like; xorshift */
    randomness ^= randomness << 13;
    randomness ^= randomness >> 17;
    randomness ^= randomness << 5;
    return randomness;
}

/* -- the card --------------------------------------------------------------------------------------------- */

static err_t send_frame(struct netif *netif, struct pbuf *p) {
    static uint8_t whole[LONGEST_FRAME];
    (void)netif;
    if (p->tot_len > sizeof whole) return ERR_BUF;
    (void)pbuf_copy_partial(p, whole, p->tot_len, 0);
    return card_send(whole, p->tot_len) == 0 ? ERR_OK : ERR_BUF;
}

static err_t start_card(struct netif *netif) {
    netif->name[0] = 'e';
    netif->name[1] = 'n';
    netif->output = etharp_output;
    netif->linkoutput = send_frame;
    netif->mtu = 1500;
    netif->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET | NETIF_FLAG_LINK_UP;
    return ERR_OK;
}

/* A locally administered address, of the device's id: the same at every start, and not another device's. */
static void make_address(uint8_t address[6]) {
    uint32_t sum = 2166136261u;
    for (const char *c = fleet->device; *c != 0; c++) sum = (sum ^ (uint8_t)*c) * 16777619u;
    address[0] = 0x02;
    address[1] = 0x53;
    for (int i = 0; i < 4; i++) address[2 + i] = (uint8_t)(sum >> (8 * i));
    randomness = sum ^ fleet->boots * 2654435761u;
    if (randomness == 0) randomness = 1;
}

static void receive_frames(void) {
    uint32_t size;
    while ((size = card_receive(frame, sizeof frame)) > 0) {
        struct pbuf *p = pbuf_alloc(PBUF_RAW, (u16_t)size, PBUF_POOL);
        if (p == NULL) return; /* TCP sends it again */
        (void)pbuf_take(p, frame, (u16_t)size);
        if (card.input(p, &card) != ERR_OK) pbuf_free(p);
    }
}

/* -- the broker ------------------------------------------------------------------------------------------- */

static void message_begins(void *context, const char *name, u32_t size) {
    (void)context;
    have = 0;
    too_long = size > sizeof request || strlen(name) >= sizeof topic;
    retained = client->rx_buffer[0] & 1; /* lwIP has read this flag and does not hand it on */
    if (!too_long) memcpy(topic, name, strlen(name) + 1);
    if (size == 0) too_long = 1; /* no data will come */
}

static void message_data(void *context, const u8_t *data, u16_t size, u8_t flags) {
    (void)context;
    if (!too_long && size <= sizeof request - have) {
        memcpy(request + have, data, size);
        have += size;
    } else {
        too_long = 1;
    }
    if ((flags & MQTT_DATA_FLAG_LAST) == 0) return;
    if (too_long) fleet->dropped++;
    else sc_fleet_message(fleet, topic, request, have, retained);
}

static void next_subscription(void *context, err_t error) {
    (void)context;
    if (error == ERR_OK && subscribed < SC_FLEET_FILTERS) {
        const char *filter = sc_fleet_filter(fleet, subscribed++);
        error = mqtt_subscribe(client, filter, 1, next_subscription, NULL);
    } else if (error == ERR_OK) {
        pause_ms = FIRST_PAUSE_MS;
        sc_fleet_connected(fleet);
    }
    if (error != ERR_OK) mqtt_disconnect(client); /* tried again later, from the beginning */
}

static void connection_changed(mqtt_client_t *c, void *context, mqtt_connection_status_t status) {
    (void)context;
    connecting = 0;
    sc_fleet_disconnected(fleet);
    retry_ms = port_now_ms() + pause_ms;
    if (status != MQTT_CONNECT_ACCEPTED) {
        pause_ms = pause_ms * 2 > LONGEST_PAUSE_MS ? LONGEST_PAUSE_MS : pause_ms * 2;
        return;
    }
    mqtt_set_inpub_callback(c, message_begins, message_data, NULL);
    subscribed = 0;
    next_subscription(NULL, ERR_OK);
}

static void connect(void) {
    static const struct mqtt_connect_client_info_t who = {
        .client_id = "stonechat-" DEVICE_ID,
#ifdef BROKER_PASSWORD
        .client_user = BROKER_USER,
        .client_pass = BROKER_PASSWORD,
#endif
        .keep_alive = KEEP_ALIVE_S,
        .will_topic = will,
        .will_qos = 1,
        .will_retain = 1,
    };
    struct mqtt_connect_client_info_t info = who;
    ip_addr_t broker;
    info.will_msg = fleet->lost;
    const uint8_t parts[4] = {BROKER_IP};
    IP_ADDR4(&broker, parts[0], parts[1], parts[2], parts[3]);
    connecting = mqtt_client_connect(client, &broker, BROKER_PORT, connection_changed, NULL, &info) == ERR_OK;
    retry_ms = port_now_ms() + pause_ms;
}

static int publish(void *context, const char *name, const uint8_t *payload, uint32_t size, int qos, int retain) {
    (void)context;
    return mqtt_publish(client, name, payload, (u16_t)size, (u8_t)qos, (u8_t)retain, NULL, NULL) == ERR_OK ? 0 : -1;
}

void network_start(sc_fleet *f) {
    fleet = f;
    fleet->publish = publish;
    memcpy(will, sc_fleet_will(fleet), sizeof will);
    pause_ms = FIRST_PAUSE_MS;
    lwip_init();
    client = mqtt_client_new();
    (void)netif_add(&card, IP4_ADDR_ANY4, IP4_ADDR_ANY4, IP4_ADDR_ANY4, NULL, start_card, ethernet_input);
    make_address(card.hwaddr);
    card.hwaddr_len = 6;
    has_card = client != NULL && card_start(card.hwaddr) == 0;
    if (!has_card) return;
    netif_set_default(&card);
    netif_set_up(&card);
    (void)dhcp_start(&card);
}

void network_poll(void) {
    if (!has_card) return;
    receive_frames();
    sys_check_timeouts();
    const int due = (int32_t)(port_now_ms() - retry_ms) >= 0;
    if (!connecting && due && !mqtt_client_is_connected(client) && !ip4_addr_isany_val(*netif_ip4_addr(&card))) connect();
    sc_fleet_tick(fleet);
}
