//go:build integration

package datapath

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
)

const namesObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: kube-system}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {app: dns}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 9}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: dns}
  ports: [{name: dns, port: 53, targetPort: 5353, protocol: UDP}, {name: tcp, port: 53, targetPort: 5353}]
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: names}
spec:
  tier: Admin
  priority: 10
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}}
  egress:
  - action: Accept
    to: [{domainNames: ["*.names.example", exact.example]}]
  - action: Accept
    to: [{pods: {namespaceSelector: {}, podSelector: {}}}]
  - action: Deny
    to: [{networks: [0.0.0.0/0, "::/0"]}]
`

// namesCount is how many names are looked up for a first connection in each family, and namesRate how many are asked
// for a second. WEFT_DNS_NAMES and WEFT_DNS_RATE set them, as make names does.
var (
	namesCount = setting("WEFT_DNS_NAMES", 150)
	namesRate  = setting("WEFT_DNS_RATE", 100)
)

// mostAsked bounds the names that latencies are measured with: there is room for 10,000 names on a node.
const mostAsked = 4000

func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// namesLab is a lab with a resolver as a pod, dnsmasq, which knows names with addresses of the host outside.
type namesLab struct {
	*labtest.Lab
	t              *testing.T
	client, free   *client
	service, other []netip.Addr // of DNS: the Service, and a pod whose answers teach nothing
}

// TestDomainNames: with domainNames, a pod's first connection to each address that it has looked up arrives, over both
// families, with DNS over UDP, TCP and after a truncated answer; nothing else does. Answers of other servers teach
// nothing. While the agent is away, DNS goes on and learned addresses stay, also when another agent takes over.
func TestDomainNames(t *testing.T) {
	l := upNames(t)
	for _, v4 := range []bool{true, false} {
		unknown := nameAddr(1, v4)
		if err := l.dial(l.client, unknown); err == nil {
			t.Errorf("%s was reached before it was looked up", unknown)
		}
		if addrs, err := l.lookup(l.client, "udp", l.other, "n1.names.example.", v4); err != nil || len(addrs) != 1 {
			t.Fatalf("the other server says %v, %v", addrs, err)
		}
		if err := l.dial(l.client, unknown); err == nil {
			t.Errorf("%s was reached although no trusted server has named it", unknown)
		}
		for _, name := range []string{"unlisted.example.", "below.exact.example."} {
			addrs, err := l.lookup(l.client, "udp", l.service, name, v4)
			if err != nil || len(addrs) != 1 || l.dial(l.client, addrs[0]) == nil {
				t.Errorf("%s: %v, %v: is reached, although no policy has it", name, addrs, err)
			}
		}
	}
	for _, v4 := range []bool{true, false} {
		failed := l.firstConnections("udp", "n%d.names.example.", 0, namesCount, v4)
		failed += l.firstConnections("tcp", "t%d.names.example.", 0, namesCount/10, v4)
		for _, name := range []string{"alias.names.example.", "exact.example.", "big.names.example."} {
			addrs, err := l.lookup(l.client, "udp", l.service, name, v4)
			if err != nil || len(addrs) == 0 || name == "big.names.example." && len(addrs) != 90 {
				t.Errorf("%s: %d addresses, %v", name, len(addrs), err)
				continue
			}
			for _, addr := range []netip.Addr{addrs[0], addrs[len(addrs)-1]} {
				if err := l.dial(l.client, addr); err != nil {
					t.Errorf("%s, %s: %v", name, addr, err)
				}
			}
		}
		if failed > 0 {
			t.Errorf("%d first connections failed", failed)
		}
	}
	l.latency()
	l.agentAway()
}

// agentAway stops node1's agent for longer than it may hold answers, and then kills it.
func (l *namesLab) agentAway() {
	t := l.t
	known := []netip.Addr{nameAddr(1, true), nameAddr(1, false)}
	stillKnown := func(when string) {
		t.Helper()
		for _, addr := range known {
			if err := l.dial(l.client, addr); err != nil {
				t.Errorf("%s: %s: %v", when, addr, err)
			}
		}
	}
	agent := l.Status().Nodes[0].Agent
	if err := agent.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		_, err := l.lookup(l.client, "udp", l.service, "a1.names.example.", true)
		return err
	})
	stillKnown("while the agent is stopped")
	if err := errors.Join(agent.Signal(syscall.SIGCONT), agent.Signal(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	for l.Status().Nodes[0].Agent == agent {
		stillKnown("while the agent is dead")
	}
	testenv.Eventually(t, 60*time.Second, func() error {
		out, err := labtest.Run(l.Exec("node/node1", "weftctl", "health", "ready"))
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	stillKnown("with another agent")
	if failed := l.firstConnections("udp", "a%d.names.example.", 2, 20, true); failed > 0 {
		t.Errorf("%d first connections failed with another agent", failed)
	}
}

// firstConnections looks names up and connects at once. It returns how many connections failed.
func (l *namesLab) firstConnections(network, format string, from, to int, v4 bool) int64 {
	var failed atomic.Int64
	work := make(chan int)
	var workers sync.WaitGroup
	for range 32 {
		workers.Go(func() {
			for i := range work {
				addrs, err := l.lookup(l.client, network, l.service, fmt.Sprintf(format, i), v4)
				if err == nil {
					err = l.dial(l.client, addrs[0])
				}
				if err != nil {
					l.t.Logf(format+" over %s: %v: %v", i, network, addrs, err)
					failed.Add(1)
				}
			}
		})
	}
	begun := time.Now()
	for i := from; i < to; i++ {
		work <- i
	}
	close(work)
	workers.Wait()
	l.t.Logf("%d first connections after lookups over %s in %v, %d failed", to-from, network,
		time.Since(begun).Round(time.Millisecond), failed.Load())
	return failed.Load()
}

// latency compares how long lookups of new names take for a pod that a policy selects and for one that none does.
func (l *namesLab) latency() {
	ask := func(from *client, format string) []time.Duration {
		var mu sync.Mutex
		var took []time.Duration
		var asked sync.WaitGroup
		n := min(namesCount, mostAsked)
		pace := time.NewTicker(time.Second / time.Duration(namesRate))
		defer pace.Stop()
		for i := range n {
			<-pace.C
			asked.Go(func() {
				begun := time.Now()
				_, err := l.lookup(from, "udp", l.service, fmt.Sprintf(format, i), true)
				mu.Lock()
				defer mu.Unlock()
				if took = append(took, time.Since(begun)); err != nil {
					l.t.Errorf("%s asks for "+format+": %v", from.name, i, err)
				}
			})
		}
		asked.Wait()
		slices.Sort(took)
		return took
	}
	for _, c := range []struct {
		what, format string
		from         *client
	}{{"no policy", "f%d.names.example.", l.free}, {"domainNames, new names", "l%d.names.example.", l.client},
		{"domainNames, known names", "l%d.names.example.", l.client}} {
		took := ask(c.from, c.format)
		l.t.Logf("%s: %d lookups at %d/s: p50 %v, p99 %v, longest %v", c.what, len(took), namesRate,
			took[len(took)/2].Round(10*time.Microsecond), took[len(took)*99/100].Round(10*time.Microsecond),
			took[len(took)-1].Round(10*time.Microsecond))
	}
}

// lookup asks a server for the addresses of a name, over the family that it asks for.
func (l *namesLab) lookup(from *client, network string, servers []netip.Addr, name string, v4 bool) ([]netip.Addr,
	error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, proposed, _ string) (conn net.Conn, err error) {
		if network == "tcp" {
			proposed = network
		}
		err = from.ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, proposed, netip.AddrPortFrom(of(servers, v4), 53).String())
			return err
		})
		return conn, err
	}}
	family := "ip6"
	if v4 {
		family = "ip4"
	}
	return r.LookupNetIP(l.t.Context(), family, name)
}

// dial connects; the first SYN must arrive, for the second one is sent a second later.
func (l *namesLab) dial(from *client, to netip.Addr) error {
	return from.ns.Do(func() error {
		conn, err := (&net.Dialer{Timeout: 900 * time.Millisecond}).DialContext(l.t.Context(), "tcp",
			netip.AddrPortFrom(to, 80).String())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// nameAddr is the address of the name with a number.
func nameAddr(i int, v4 bool) netip.Addr {
	if v4 {
		return netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)})
	}
	b := netip.MustParseAddr("fd99::").As16()
	b[14], b[15] = byte(i>>8), byte(i)
	return netip.AddrFrom16(b)
}

func upNames(t *testing.T) *namesLab {
	file := labtest.Write(t, map[string]string{"names.yaml": namesObjects + podManifest("client", "client", "node1", 9, "") +
		podManifest("free", "free", "node1", 9, "") + podManifest("other", "other", "node2", 9, "")})
	l := &namesLab{Lab: labtest.Up(t, "names", "-f", file, "--nodes=2", "--ip-family=dual"), t: t}
	s := l.Status()
	l.client, l.free = openClient(t, s, "client", "node1", "pod"), openClient(t, s, "free", "node1", "pod")
	other, dns := openClient(t, s, "other", "node2", "pod"), openClient(t, s, "kube-system/dns", "node2", "pod")
	outside := openClient(t, s, "outside", "", "outside")
	l.other = other.ips
	for _, service := range s.Services {
		if service.Name == "kube-dns" {
			for _, ip := range service.IPs {
				l.service = append(l.service, netip.MustParseAddr(ip))
			}
		}
	}

	for _, v4 := range []bool{true, false} {
		all, family, via := "10.99.0.0/16", "-4", of(outside.ips, v4).String()
		if !v4 {
			all, family = "fd99::/64", "-6"
		}
		l.Run("outside", "ip", family, "route", "add", "local", all, "dev", "lo")
		l.Run("node/node1", "ip", family, "route", "add", all, "via", via)
	}
	if err := outside.ns.Do(func() error {
		listener, err := net.Listen("tcp", ":80")
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = listener.Close() })
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(io.Discard, conn); _ = conn.Close() }()
			}
		}()
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	var conf strings.Builder
	number := 0
	record := func(name string) {
		number++
		fmt.Fprintf(&conf, "host-record=%s,%s,%s,600\n", name, nameAddr(number, true), nameAddr(number, false))
	}
	record("n1.names.example") // nameAddr(1)
	for i := range namesCount {
		if i != 1 {
			record(fmt.Sprintf("n%d.names.example", i))
		}
	}
	for _, more := range []struct {
		prefix string
		n      int
	}{{"t", namesCount / 10}, {"l", min(namesCount, mostAsked)}, {"f", min(namesCount, mostAsked)}, {"a", 20}} {
		for i := range more.n {
			record(fmt.Sprintf("%s%d.names.example", more.prefix, i))
		}
	}
	record("target.elsewhere.example")
	record("exact.example")
	record("below.exact.example")
	record("unlisted.example")
	conf.WriteString("cname=alias.names.example,target.elsewhere.example\n")
	for range 90 {
		record("big.names.example")
	}
	path := filepath.Join(t.TempDir(), "dnsmasq.conf")
	if err := os.WriteFile(path, []byte(conf.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	for pod, port := range map[*client]string{dns: "5353", other: "53"} {
		cmd := exec.CommandContext(t.Context(), "nsenter", "--net="+pod.ns.Path(), "dnsmasq", "--keep-in-foreground",
			"--conf-file="+path, "--no-hosts", "--no-resolv", "--user=root", "--pid-file=", "--port="+port, "--local=/example/")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Wait() }) // its context has ended
	}
	testenv.Eventually(t, 20*time.Second, func() error {
		var errs []error
		for _, v4 := range []bool{true, false} {
			_, err := l.lookup(l.free, "udp", l.service, "f0.names.example.", v4)
			_, other := l.lookup(l.free, "udp", l.other, "f0.names.example.", v4)
			errs = append(errs, err, other)
		}
		return errors.Join(errs...)
	})
	return l
}
