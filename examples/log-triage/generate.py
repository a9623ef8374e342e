"""Lines of logs and what they are about: JSON lines, the same for the same seed.

    python generate.py --seed 0 --cases 1000

high: something is down, lost, killed or broken into. normal: an error or a warning that should not wait for ever.
low: small, over, or healed by itself. Lines of everyday work ask for nothing: none, low.
"""

from __future__ import annotations

import argparse
import json
import random
import re

# what a line is about -> its subjects; and what may be said of any of them, by priority
SUBJECTS = {
    "network": "network link on IF|link on IF|interface IF|network interface IF|ethernet link|connection to IP|connection to HOST|tcp connection to IP|uplink|wan link|default gateway IP|gateway|router HOST|switch port N|switch HOST|vpn tunnel to HOST|vpn|wifi|wireless link|wlan0|dns server IP|dns resolver|name resolution|dhcp server|dhcp lease on IF|network|upstream HOST|remote host HOST|peer IP|bgp session with IP|firewall|route to IP|proxy HOST|load balancer HOST|socket to IP|nic IF|network adapter|lan|internet connection|mqtt broker connection|packet flow on IF|network path to HOST|bridge br0|bonding interface bond0|modem|cellular link|lte link|access point HOST|port N|website HOST|ntp server HOST|network cable|broker at HOST",
    "storage": "disk DEV|disk|hard disk DEV|drive DEV|filesystem on DEV|file system PATH|partition DEV|volume PATH|raid array md0|raid|ssd DEV|nvme0n1|lvm volume group vg0|mount PATH|nfs mount PATH|backup volume|backup|nightly backup|storage pool tank|zfs pool tank|block device DEV|sd card|flash storage|usb stick DEV|root filesystem|/var partition|log partition|san lun N|tape drive|object storage bucket|snapshot of PATH|journal of DEV|inode table on DEV|quota on PATH|storage array|ext4 on DEV|btrfs on DEV|file server share|disk controller|storage node HOST|data volume|archive disk|ceph osd.N",
    "memory": "memory|system memory|ram|heap|java heap space|jvm heap|swap|swap space|memory usage|memory usage of PROC|memory of PROC|rss of PROC|resident set of PROC|page cache|memory cgroup|memory limit of PROC|container memory|shared memory|heap of PROC|free memory|available memory|memory pool|memory allocation|buffer memory|virtual memory|kernel memory|memory of pod PROC-N|slab cache|garbage collector heap|huge pages|memory consumption|memory pressure|stack memory",
    "auth": "login of USER|login for USER|user USER|account USER|ssh login from IP|password of USER|ssh key of USER|sudo by USER|access token of USER|api token|session token|ldap login|kerberos ticket|two-factor code of USER|authentication of USER|authentication|authorization of USER|root login|credentials of USER|oauth token|jwt|pam authentication|radius login|single sign-on|login from IP|admin login|active directory login|certificate of client USER|api key|password|privileges of USER|permission check for USER|user session of USER",
    "hardware": "cpu temperature|cpu N temperature|fan N|cpu fan|chassis fan|case fan|power supply N|psu N|voltage rail 12v|cmos battery|battery|ups battery|ups|temperature sensor N|sensor N|pcie device 00:1f|pcie slot N|usb device N|usb hub|dimm slot N|ecc on dimm N|gpu N|gpu temperature|mainboard|motherboard|bios|firmware of bmc|ipmi sensor N|cpu core N|processor N|hardware clock|real-time clock|touchscreen|camera module|gpio controller|i2c bus N|serial port ttyUSB0|watchdog timer|thermal zone N|chassis intrusion switch|power input|rack power unit|cooling|heatsink|bluetooth chip|keyboard controller|printer tray|system board|cpu|radio chip|motor driver|hardware",
    "application": "service PROC|PROC|PROC service|worker N of PROC|request handler|http request to /api/ORDERS|job ORDERS|cron job ORDERS|batch job N|module ORDERS|application|app server|web server|database query|sql query|transaction N|message queue ORDERS|consumer of ORDERS|task ORDERS|thread pool|thread main|process PROC|plugin ORDERS|container PROC|pod PROC-N|deployment of PROC|configuration of PROC|config file of PROC|scheduler|api endpoint /ORDERS|rest call to ORDERS|background job|database migration|template ORDERS|controller ORDERS|parser|import of ORDERS|export of ORDERS|webhook|email queue|payment module|order processing|cache layer|graphql resolver|celery worker|microservice ORDERS|script ORDERS.py|application ORDERS|rendering of ORDERS",
}
STATES = {
    "network": {
        "high": "down|is down|went down|lost|unreachable|is unreachable|no carrier|disconnected and not coming back|failed, all hosts offline|no route to host|is dead|dropped all packets|100% packet loss|not responding, service outage|offline|outage|completely unreachable for N minutes|network is down|lost connectivity|all links down|cannot be reached since N minutes|is offline|failed permanently|collapsed|cut off",
        "normal": "timed out|timeout|connection refused|connection reset by peer|is flapping|PCT% packet loss|high latency N ms|is slow|retransmissions rising|too many retries|reset|refused|could not be resolved|temporary failure|unstable|errors on receive|crc errors N|duplex mismatch|duplicate address detected|request timed out after N ms|bandwidth PCT% used|congested|handshake failed|dropped N packets|did not answer|degraded|retrying in N s|is saturated|intermittent failures|address conflict|mtu mismatch|no response within N s|dropping packets",
        "low": "recovered|restored|back online|is up again|up again after N s|reconnected|came back|one packet lost|slightly slow once|one retry, then ok|renegotiated speed|latency back to normal|short glitch, recovered|failover finished, back to normal|reconnect succeeded|timeout once, retry succeeded|link up after short interruption|minor jitter|stable again",
    },
    "storage": {
        "high": "full|is full|100% full|no space left on device|failed|has failed|i/o error|buffer i/o error|is read-only|remounted read-only|corrupt|is corrupted|data loss|unrecoverable read error|degraded, two disks missing|missing|lost|superblock damaged|cannot be mounted|uncorrectable sectors N|99% used|disappeared|offline|write failed, data lost|failed, no backup since N days|broken|dead|is out of space|checksum mismatch, data damaged|crashed",
        "normal": "PCTHI% full|almost full|nearly full|usage above PCTHI%|running out of space|slow|high i/o wait|write latency N ms|degraded|reallocated sectors N|pending sectors N|smart warning|smart error|rebuild needed|fsck needed|low on space|inodes PCTHI% used|quota exceeded|needs checking|mount timed out|sync failed, retrying|was not unmounted cleanly|read errors|running low|space low|only N gb left|failed once, will retry|out of inodes soon|filling up|wear level PCTHI%|queue is long|incomplete",
        "low": "rebuild finished|recovered|resync done|space freed|back below threshold|cleaned up N files|usage back to normal|journal replayed|errors corrected|recovered after fsck|one read retry succeeded|trim took N ms|slightly fragmented|old snapshots removed|was checked and repaired|minor delay on write|repaired|scrub repaired N bytes",
    },
    "memory": {
        "high": "out of memory|exhausted|is exhausted|oom-killer invoked|killed by oom killer|oom killed|allocation failed|cannot allocate memory|full, process killed|ran out|no memory left|OutOfMemoryError|100% used|limit exceeded, container killed|exceeded, killing process N|depleted|completely full|page allocation failure|fatal allocation error|all swap used|critically low",
        "normal": "PCTHI% used|high|usage high|almost full|above PCTHI%|leak suspected|growing steadily|leaking|swapping heavily|pressure high|near the limit|gc overhead high|low|running low|fragmented|grew by N mb|usage above threshold|exceeds soft limit|only N mb free|thrashing|climbing|usage at PCTHI%|warning threshold reached|long gc pause N ms",
        "low": "back to normal|pressure gone|freed N mb|reclaimed|usage dropped|below threshold again|slightly up|short spike, over now|recovered after gc|compacted|normal again|leak fixed after restart|small spike|pressure resolved",
    },
    "auth": {
        "high": "brute force attack detected|N failed attempts from IP|too many failed logins, possible attack|compromised|was stolen|break-in attempt|possible break-in attempt|unauthorized root access|privilege escalation detected|intrusion detected|accepted from unknown country, suspicious|credential stuffing detected|security breach|unauthorized access to secrets|repeated failures, attack suspected|hacked|leaked|disabled audit logging|all logins failing|authentication server down|bypassed|used from blacklisted ip IP|tampered",
        "normal": "failed|authentication failed|authentication failure|failed password|invalid password|wrong password|permission denied|access denied|denied|rejected|unauthorized|401 unauthorized|403 forbidden|locked|locked after 3 attempts|expired|invalid|is invalid|unknown user|invalid user|not in sudoers|signature verification failed|mismatch|incorrect|revoked|not authorized for PATH|failed for invalid user USER|login refused|insufficient privileges|bad credentials|missing",
        "low": "will expire in N days|expires soon|unlocked again|renewed after expiry|one wrong password, then accepted|password changed after reminder|lockout lifted|reset by user|retry succeeded|mistyped once|unlocked|old token removed|second attempt ok|lock released",
    },
    "hardware": {
        "high": "critical|critical temperature N c, shutting down|overheating|failed|has failed|stopped|dead|is dead|power lost|not detected|machine check exception|fatal hardware error|uncorrectable ecc error|burnt|emergency shutdown|missing|broken|does not spin|on battery, N minutes left|0 rpm|above critical limit|short circuit|smoke detected|no power|shut down due to heat|gone|uncorrected error|lost redundancy, both failed|fell off the bus",
        "normal": "high N c|above threshold|too hot|running hot|throttled|thermal throttling|slow, N rpm|voltage low|voltage out of range|corrected ecc errors N|degraded|needs replacement|worn|unstable|warning|not redundant|reset|over-current|link width reduced|unexpected reading|noisy|replace soon|undervoltage detected|error N|low|timeout|calibration lost|error rate rising|clock drift|bus errors|disconnected|did not respond",
        "low": "back to normal|cooled down|recovered|normal again|one corrected error|speed back to normal|reconnected|battery charged again|minor deviation|calibrated again|throttling ended|temperature normal|within limits again|redundancy restored|replaced and working|one bit corrected",
    },
    "application": {
        "high": "crashed|has crashed|is down|fatal error|fatal exception, exiting|segfault|segmentation fault|core dumped|panic|does not start|failed to start|exited with code N|terminated unexpectedly|unavailable|503 service unavailable|all workers dead|crash loop|CrashLoopBackOff|aborted, data inconsistent|deadlock, not responding|hangs|not responding|stopped working|outage for all users|unhandled exception, shutting down|failed repeatedly, giving up|killed by signal 11|lost N orders|fatal: cannot continue|completely broken|rolled back, production down",
        "normal": "failed|exception|NullPointerException|unhandled exception|error|internal server error|500 internal server error|returned 500|timed out|slow, took N ms|deadlock detected|retrying|stack trace follows|TypeError: undefined is not a function|KeyError|ValueError|IndexError|assertion failed|parse error at line N|syntax error|invalid configuration|missing dependency|version mismatch|queue backlog N|duplicate key|constraint violation|rejected invalid input|failed with code N|restarted unexpectedly|unexpected response|not found|rate limit reached|warning: N errors|stuck|behind by N messages|invalid json|bad request|misconfigured|could not be parsed|aborted|failed validation|missed its deadline|threw an exception|IllegalStateException",
        "low": "deprecated|uses a deprecated api|is deprecated|slow once|retry succeeded|recovered|restarted and healthy again|succeeded on second attempt|falls back to default|minor warning|unknown option ignored|cache miss rate slightly up|back to normal|healthy again|skipped one bad record|will be removed in version N|ignored an unknown field|took slightly longer than usual|fixed by restart|outdated version",
    },
}
# whole messages that real programs write
KNOWN = {
    ("network", "high"): "IF: NIC Link is Down|IF: link is not ready, no carrier|kernel: IF: Link is Down|connect: network is unreachable|No route to host HOST|ping IP: 100% packet loss|bgp neighbor IP went from established to idle|IF: carrier lost|upstream server temporarily disabled, all upstreams down|failed to reach any dns server|tunnel to HOST down, peer dead|cable unplugged on IF",
    ("network", "normal"): "connect to IP port N failed: Connection timed out|connect() failed (111: Connection refused) while connecting to upstream|dial tcp IP:N: i/o timeout|read tcp IP:N: connection reset by peer|could not resolve host: HOST|Temporary failure in name resolution|nf_conntrack: table full, dropping packet|TCP: possible SYN flooding on port N|IF: received packet with own address as source|dhclient: No DHCPOFFERS received|ssl handshake timed out with IP|upstream timed out while reading response header|NETDEV WATCHDOG: IF: transmit queue 0 timed out|host HOST unreachable, retrying|ntpd: no servers reachable|getaddrinfo ENOTFOUND HOST|ECONNREFUSED IP:N|ETIMEDOUT connecting to HOST",
    ("network", "low"): "IF: Link is Up after flap|connection to HOST re-established|bgp neighbor IP is up again|dns lookup retried and succeeded|IF: link up, 1000 mbps, was down for N s|wlan0: reassociated after short loss|vpn tunnel re-keyed after timeout, ok",
    ("storage", "high"): "EXT4-fs error (device DEV): ext4_find_entry: reading directory lblock 0|Buffer I/O error on dev DEV, logical block N|blk_update_request: I/O error, dev DEV, sector N|write error: No space left on device|XFS (DEV): metadata I/O error, shutting down filesystem|md/raid1:md0: Disk failure on DEV, disabling device|EXT4-fs (DEV): Remounting filesystem read-only|smartd: DEV FAILED SMART self-check. BACK UP DATA NOW!|zpool tank is FAULTED|ENOSPC: no space left on device, write|mount: wrong fs type, bad superblock on DEV|database disk image is malformed|could not write to file: No space left on device|ceph health HEALTH_ERR|DEV: unrecovered read error",
    ("storage", "normal"): "smartd: DEV, N Currently unreadable (pending) sectors|smartd: DEV, SMART usage attribute reallocated_sector_ct changed|filesystem PATH is PCTHI% full|disk usage on PATH at PCTHI%|nfs: server HOST not responding, still trying|md0: rebuild started|mdadm: DegradedArray event on md0|df: PATH PCTHI% used, threshold 85%|rsync error: some files could not be transferred|backup of PATH failed: timeout|EXT4-fs (DEV): warning: mounting fs with errors, running e2fsck is recommended|task blocked for more than 120 seconds on DEV|disk quota exceeded for USER|slow write on DEV: N ms|ceph health HEALTH_WARN",
    ("storage", "low"): "EXT4-fs (DEV): recovery complete|md: md0: resync done|nfs: server HOST OK|md0: recovery done|old backups removed, PATH now 41% full|fsck: DEV: recovering journal, clean|xfs: DEV: ending recovery",
    ("memory", "high"): "Out of memory: Killed process N (PROC)|PROC invoked oom-killer: gfp_mask=0x0, order=0|java.lang.OutOfMemoryError: Java heap space|fatal: malloc failed, cannot allocate N bytes|Memory cgroup out of memory: Kill process N (PROC)|MemoryError in PROC|std::bad_alloc thrown, terminating|container PROC OOMKilled|FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory|page allocation failure: order:N|fork: Cannot allocate memory|redis: can't save in background: fork: Cannot allocate memory|runtime: out of memory: cannot allocate N-byte block|OutOfMemoryError: GC overhead limit exceeded",
    ("memory", "normal"): "memory usage at PCTHI% on HOST|low memory warning: N mb free|swap usage PCTHI%|gc pause took N ms, heap PCTHI% full|possible memory leak in PROC, rss grew by N mb|MaxListenersExceededWarning: possible EventEmitter memory leak detected|memory pressure stall N%|heap usage above PCTHI%|kswapd0 uses N% cpu|available memory below N mb|redis memory usage above maxmemory policy threshold",
    ("memory", "low"): "memory usage back to 50%|full gc freed N mb|swap use back to normal|memory pressure resolved on HOST|dropped caches, N mb free again",
    ("auth", "high"): "POSSIBLE BREAK-IN ATTEMPT! from IP|N failed login attempts for root from IP within 1 minute|pam: maximum authentication attempts exceeded for root from IP, attack|fail2ban: N bans in 10 minutes, brute force on sshd|multiple failed root logins from IP|password database was read by USER|new admin account created by unknown user|sudo: USER : N incorrect password attempts ; USER=root|user USER added to group root without approval|suspicious login of USER from IP, impossible travel",
    ("auth", "normal"): "Failed password for USER from IP port N ssh2|Failed password for invalid user USER from IP port N ssh2|pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 rhost=IP|Invalid user USER from IP|USER : user NOT in sudoers ; TTY=pts/0|Permission denied (publickey)|access denied for user 'USER'@'HOST' (using password: YES)|401 Unauthorized for /api/ORDERS|403 Forbidden: USER may not read PATH|token expired for USER|invalid credentials for USER|kinit: Preauthentication failed|FATAL: password authentication failed for user USER|Account USER has been locked|jwt signature invalid|login failed for USER: bad password|su: FAILED SU (to root) USER on pts/0|pam_tally: user USER locked|connection closed by authenticating user USER IP port N [preauth]",
    ("auth", "low"): "password of USER will expire in N days|account USER unlocked by admin|certificate of USER expires in N days|token of USER refreshed after expiry|USER changed the password after a failed attempt|two-factor retry succeeded for USER",
    ("hardware", "high"): "mce: [Hardware Error]: Machine check events logged, CPU N: uncorrected|CPU N: Core temperature above threshold, cpu clock throttled, critical|thermal thermal_zone0: critical temperature reached (N C), shutting down|ACPI: Critical trip point|power supply N failed|fan N failure: 0 rpm|UPS on battery, low battery|GPU has fallen off the bus|EDAC MC0: N UE memory uncorrectable error on dimm N|kernel: nmi: hardware failure|NVRM: Xid: GPU hang|psu redundancy lost, input voltage missing|battery critical, N% left|cpu temperature 101 c",
    ("hardware", "normal"): "CPU N: Package temperature above threshold, cpu clock throttled|Under-voltage detected! (0x0)|EDAC MC0: N CE memory read error on dimm N|fan N speed below minimum: N rpm|usb 1-1: device descriptor read/64, error -71|pcieport: AER: Corrected error received|i2c i2c-1: transfer timed out|temperature of sensor N is N c, limit N c|battery needs replacement|ipmi: sensor psu N voltage below lower non-critical|usb 2-1: USB disconnect, device number N|rtc: time drift of N s|hub 1-0:1.0: over-current condition on port N|cpu temperature N c, throttling|nvme0: temperature warning|watchdog: hardware watchdog did not stop",
    ("hardware", "low"): "CPU N: Core temperature/speed normal|fan N speed back to normal|ups: power restored, battery charging|usb 1-1: reset and working again|voltage normalised|thermal throttling ended|battery level ok again",
    ("application", "high"): "PROC.service: Main process exited, code=dumped, status=11/SEGV|PROC: segfault at 0 ip 0x0 sp 0x0 error N|PROC.service: Failed with result 'core-dump'|systemd: Failed to start PROC|Back-off restarting failed container PROC|panic: runtime error: invalid memory address or nil pointer dereference|FATAL: terminating PROC due to unrecoverable error|all upstream workers of PROC crashed|PROC exited with status 139|emerg: PROC configuration test failed, not starting|production site down: 503 for all requests|PROC: start request repeated too quickly, giving up|unhandled exception in main, process exits|Liveness probe failed, PROC is being restarted for the Nth time",
    ("application", "normal"): "java.lang.NullPointerException at com.shop.ORDERS.run(Main.java:N)|Traceback (most recent call last): ValueError in ORDERS.py|HTTP 500 on /api/ORDERS|GET /ORDERS 500 N ms|unhandled promise rejection in ORDERS|ORA-00001: unique constraint violated|ERROR: duplicate key value violates unique constraint|job ORDERS failed after N s|cannot parse config PATH: unexpected token|TypeError: cannot read property of undefined|deadlock found when trying to get lock|ModuleNotFoundError: No module named ORDERS|queue ORDERS has N messages waiting|slow query: N ms select from ORDERS|worker N timed out, restarting|KeyError: 'ORDERS'|PHP Warning: Undefined variable in PATH on line N|django: Internal Server Error: /ORDERS/|could not deserialize message of ORDERS|cron ORDERS exited with status N|webhook to ORDERS returned 502|migration N failed: column exists|IllegalArgumentException: ORDERS must not be null|panic recovered in handler ORDERS|request to ORDERS failed with error N|connection pool exhausted in ORDERS|java.util.ConcurrentModificationException",
    ("application", "low"): "DeprecationWarning: ORDERS() will be removed|ORDERS took N ms, slightly above target|retry 1 of ORDERS succeeded|PROC restarted, healthy again|unknown key in config ignored: ORDERS|using default for missing setting ORDERS|one record of ORDERS skipped|health check of PROC ok again|warning: ORDERS is deprecated, use v2",
}
ROUTINE = "Started Session N of user USER|Started PROC|Started PROC service|Stopped PROC|Starting PROC|Reached target Multi-User System|CRON[N]: (root) CMD (run-parts --report /etc/cron.hourly)|session opened for user USER by (uid=0)|session closed for user USER|Accepted publickey for USER from IP port N ssh2|Accepted password for USER from IP port N ssh2|USER logged in|USER logged in successfully|USER logged out|user USER signed in|login of USER successful|GET /index.html 200 N|GET /api/ORDERS 200 N ms|POST /api/ORDERS 201 N ms|\"GET /ORDERS HTTP/1.1\" 200 N|HTTP 200 ok|HEAD /health 200|304 not modified /ORDERS|backup completed|backup of PATH completed successfully|nightly backup finished without errors|job ORDERS finished in N s|job ORDERS completed successfully|connected to HOST|connection from IP accepted|new client connected from IP|client disconnected normally|dhcp lease renewed for IP|DHCPACK of IP from IP|bound to IP, renewal in N seconds|listening on port N|server listening on 0.0.0.0:N|configuration loaded|config reloaded|reloading configuration|cache warmed up|health check passed|health check ok|heartbeat|heartbeat ok|ping ok N ms|checkpoint complete: wrote N buffers|log rotated|rotating logs|logrotate finished|systemd-timesyncd: synchronized to time server IP|time synchronized|package PROC upgraded to version N|update installed|no updates available|Daily apt download activities finished|mounted PATH|mounted filesystem with ordered data mode|DEV: mounted|unmounted PATH|new usb device found, idVendor=0|usb 1-1: new high-speed USB device number N using xhci_hcd|usb device connected|IF: link becomes ready|IF: Link is Up - 1Gbps/Full|link up|fan speed set to N%|temperature N c, normal|cpu temperature normal|all sensors ok|all systems normal|status ok|everything ok|nothing to do|scheduled task ORDERS started|scheduled task ORDERS finished|message N delivered|email sent to USER|N messages processed|N rows inserted|N orders processed|order N created|payment N received|worker N ready|worker started|worker idle|thread pool started with N threads|garbage collection finished in 3 ms|gc: 2 ms|memory usage 35%|memory 40% used, ok|disk usage 30%|disk PATH 41% used|swap unused|cpu 12%|load average: 0.2, 0.1, 0.1|uptime N days|entering idle state|suspend|resumed from suspend|shutdown requested by USER|system boot|booting linux|boot finished in N s|kernel: Linux version 6|command line: quiet splash|certificate renewed|tls certificate valid for N days|token issued for USER|password changed for USER|sudo: USER : TTY=pts/0 ; COMMAND=/usr/bin/apt|user USER created|group added|index rebuilt|migration N applied|database vacuumed|vacuum finished|replication in sync|replica caught up|snapshot created|snapshot of PATH created|sync finished|sync complete, 0 errors|0 errors, 0 warnings|build succeeded|tests passed|deployed version N|deployment of PROC finished|release N rolled out|container PROC started|container PROC created|pulled image PROC|pod PROC-N scheduled|readiness probe succeeded|metrics exported|stats: N requests, 0 failed|debug: entering function ORDERS|debug: value of ORDERS is N|trace: leaving ORDERS|user clicked ORDERS|page ORDERS rendered in N ms|query took 2 ms|request completed in N ms|file PATH uploaded|file PATH saved|downloaded N files|report ORDERS generated|export of ORDERS finished|printer ready|scan finished, nothing found|virus scan clean|firewall rules loaded|firewall started|vpn connected|wifi connected to home|dns cache flushed|route added|ntp: offset 0.001 s|systemd: Startup finished in N s|Created slice User Slice of USER|Removed slice|New session N of user USER|dbus: Activating service PROC|rsyslogd: action resumed|audit: type=1400 apparmor=ALLOWED|postfix: status=sent (250 ok)|nginx: signal process started|apache: resuming normal operations|mysqld: ready for connections|postgres: database system is ready to accept connections|redis: Ready to accept connections|kafka: started|docker: API listen on /run/docker.sock|sshd: Server listening on 0.0.0.0 port 22|raid check finished, no errors|smart test passed|smartd: DEV, SMART self-test passed|battery fully charged|battery 98%|ups test passed|door opened|door closed|motion detected|temperature reading 21.5|humidity 40%|lights on|hello|hello world|test|test message|this is a test|good morning|lunch at noon|meeting moved to friday|please ignore|--|-- MARK --|end of file|lorem ipsum dolor sit amet|the quick brown fox|thanks|see you tomorrow|what is the weather|info|ok|done|ready|finished|begin|idle|waiting for input|watching for changes|received SIGHUP, reloading|graceful shutdown complete|exited with code 0|process N exited normally|PROC exited with status 0|goodbye|user preferences saved|theme set to dark|language set to english|new version available|license valid|feature flag ORDERS enabled|cleanup done|removed N temporary files|cron finished|tick|polling ORDERS|poll finished|no new mail|mailbox empty|queue empty|queue ORDERS is empty|consumer started|producer connected|subscribed to ORDERS|published to ORDERS"
USERS = "root admin alice bob carol test guest oracle postgres www-data ubuntu pi deploy git jenkins svc_backup maria tom anna peter user1 operator nagios ftp".split()
PROCS = "nginx mysqld postgres java python3 node redis-server apache2 chrome firefox dockerd kubelet mosquitto sshd cron php-fpm tomcat elasticsearch kafka rabbitmq grafana prometheus stunnel haproxy billing checkout frontend backend auth-service api-gateway worker celery gunicorn mongod influxd telegraf homeassistant zigbee2mqtt".split()
THINGS = "orders invoices users payments cart catalog reports images mail search login-page import export stock prices shipping inventory customers products events metrics sessions uploads thumbnails newsletter billing calendar sync".split()
HOSTS = "web01 db01 db-master app-3 gw1 srv-mail example.com api.example.com node7 storage2 k8s-worker-2 fileserver printer3 backup1 edge-gw pi4 site.local switch12 core-router".split()
PATHS = "/ /var /home /data /mnt/backup /srv/files /var/log /opt /tmp /boot /usr /var/lib/mysql /mnt/nas /etc/app.conf C: D:".split()
DEVS = "sda sdb sda1 sdb2 nvme0n1p1 mmcblk0 md0 dm-0 /dev/sda /dev/sdb1 /dev/nvme0n1 vda xvdf".split()
LEVELS = {
    "high": "ERROR CRITICAL FATAL CRIT EMERG ALERT ERR SEVERE error critical fatal".split(),
    "normal": "ERROR WARN WARNING ERR error warning warn".split(),
    "low": "INFO WARN NOTICE WARNING info notice".split(),
    "none": "INFO DEBUG NOTICE TRACE info debug".split(),
}
GLUE = ["{s} {t}", "{s} {t}", "{s}: {t}", "{s} - {t}", "{s} {t} on {h}", "{h}: {s} {t}", "{t}: {s}", "{s}, {t}", "alert: {s} {t}", "{s} reported: {t}", "{s} status {t}", "[{s}] {t}", "{s} is now {t}", "monitoring: {s} {t}", "detected that {s} {t}"]


def pick(rng: random.Random, choices: str) -> str:
    return rng.choice(choices.split("|"))


def filled(rng: random.Random, text: str) -> str:
    """Names and numbers in place of the capitals."""
    slots = {
        "IP": lambda: ".".join(str(rng.randint(1, 254)) for _ in range(4)),
        "HOST": lambda: rng.choice(HOSTS),
        "IF": lambda: rng.choice(["eth0", "eth1", "enp3s0", "ens18", "wlan0", "eno1", "bond0", "wlp2s0", "usb0", "ppp0"]),
        "DEV": lambda: rng.choice(DEVS),
        "PATH": lambda: rng.choice(PATHS),
        "PROC": lambda: rng.choice(PROCS),
        "USER": lambda: rng.choice(USERS),
        "ORDERS": lambda: rng.choice(THINGS),
        "PCTHI": lambda: str(rng.randint(80, 97)),
        "PCT": lambda: str(rng.randint(3, 60)),
        "N": lambda: str(rng.choice([rng.randint(1, 9), rng.randint(10, 99), rng.randint(100, 99999)])),
    }
    return re.sub(r"\b(PCTHI|PCT|IP|HOST|IF|DEV|PATH|PROC|USER|ORDERS|N)(?![A-Za-z])", lambda m: slots[m[1]](), text)


def prefix(rng: random.Random, kind: str) -> str:
    level, host = rng.choice(LEVELS[kind]), rng.choice(HOSTS)
    when = f"{rng.randint(2019, 2027)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
    month = rng.choice("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split())
    program = rng.choice([*PROCS, "kernel", "kernel", "systemd", "app", "syslog", "monitor", "agent", "daemon"])
    pid = rng.randint(1, 99999)
    return rng.choice([
        "", "", "", "", f"{level}: ", f"[{level}] ", f"{level} ", f"{when} {clock} {level} ", f"{when}T{clock}Z {level} ",
        f"{month} {rng.randint(1, 28)} {clock} {host} {program}[{pid}]: ", f"{month} {rng.randint(1, 28)} {clock} {host} kernel: ",
        f"{program}[{pid}]: ", f"kernel: [{pid}.{rng.randint(100000, 999999)}] ", f"[{clock}] ", f"{when} {clock},123 - {level} - ",
        f"<{rng.randint(1, 191)}>{host} ", f"{level} {program}: ", f"[{when} {clock}] [{level.lower()}] [pid {pid}] ",
        f"level={level.lower()} msg=", f"{program}: ", f"{when} {clock} [{program}] {level} ", f"time={when}T{clock} level={level.lower()} ",
    ])  # fmt: skip


def line(rng: random.Random) -> tuple[str, str, str]:
    if rng.random() < 0.28:
        text = pick(rng, ROUTINE)
        return prefix(rng, "none") + filled(rng, text), "none", "low"
    category = rng.choice(list(SUBJECTS))
    priority = rng.choices(["high", "normal", "low"], [0.4, 0.4, 0.2])[0]
    if rng.random() < 0.4:
        text = pick(rng, KNOWN[category, priority])
    else:
        subject, state = pick(rng, SUBJECTS[category]), pick(rng, STATES[category][priority])
        text = rng.choice(GLUE).format(s=subject, t=state, h="HOST")
    return prefix(rng, priority) + filled(rng, text), category, priority


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=1000)
    args = parser.parse_args()
    rng = random.Random(f"log-triage {args.seed}")
    for _ in range(args.cases):
        text, category, priority = line(rng)
        answer = {"category": category, "priority": priority}
        print(json.dumps({"input": {"text": text}, "answer": answer}, ensure_ascii=False))


if __name__ == "__main__":
    main()
