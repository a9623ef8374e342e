/* How lwIP is built for the firmware: no operating system, no heap but its own, TCP over Ethernet, DHCP, its MQTT client. */
#ifndef LWIPOPTS_H
#define LWIPOPTS_H

#define NO_SYS 1
#define LWIP_SOCKET 0
#define LWIP_NETCONN 0
#define SYS_LIGHTWEIGHT_PROT 0 /* all of it runs in the main loop */
#define MEM_ALIGNMENT 4
#define MEM_SIZE (24 * 1024) /* static */
#define MEMP_NUM_TCP_PCB 4
#define MEMP_NUM_TCP_SEG 24
#define PBUF_POOL_SIZE 16
#define TCP_MSS 1460
#define TCP_WND (4 * TCP_MSS)
#define TCP_SND_BUF (4 * TCP_MSS)
#define LWIP_IPV4 1
#define LWIP_IPV6 0
#define LWIP_ARP 1
#define LWIP_DHCP 1
#define LWIP_UDP 1
#define LWIP_TCP 1
#define LWIP_RAW 0
#define LWIP_DNS 0
#define LWIP_STATS 0
#define LWIP_NETIF_TX_SINGLE_PBUF 1
#define MEMP_NUM_SYS_TIMEOUT (LWIP_NUM_SYS_TIMEOUT_INTERNAL + 2) /* of the MQTT client as well */
#define MQTT_OUTPUT_RINGBUF_SIZE 4096
#define MQTT_VAR_HEADER_BUFFER_LEN 256
#define MQTT_REQ_MAX_IN_FLIGHT 8
#define MQTT_CONNECT_TIMOUT 20

#endif
