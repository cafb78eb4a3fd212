//go:build integration

package datapath

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// A Service claims the address of a host outside of the cluster, as its load balancer's and as an external address. It
// has its own protocol and port there; pods and nodes reach the host's other ports, and the host reaches the nodes.
func TestHostBehindExternalAddress(t *testing.T) {
	const service = `
---
apiVersion: v1
kind: Service
metadata: {name: vip%d}
spec: {type: LoadBalancer, ipFamilies: [%s], selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: %d}]%s}
`
	file := filepath.Join(labtest.Write(t, map[string]string{"f.yaml": podManifest("web", "web", "node2", 8080, "") +
		podManifest("client", "client", "node1", 9, "") + podManifest("host-1", "host", "node1", 9, hostNetwork) +
		fmt.Sprintf(service, 4, "IPv4", 30081, "") + "status: {loadBalancer: {ingress: [{ip: 172.31.0.2}]}}\n" +
		fmt.Sprintf(service, 6, "IPv6", 30086, ", externalIPs: ['fd57:6566:7461::2']")}), "f.yaml")
	l := labtest.Up(t, "exthost", "-f", file, "--nodes=2", "--ip-family=dual")
	s := l.Status()
	pod, node, outside := openClient(t, s, "client", "node1", "pod"), openClient(t, s, "host-1", "node1",
		"node"), openClient(t, s, "outside", "", "outside")
	for _, v4 := range []bool{true, false} {
		host, own := of(outside.ips, v4), of(node.ips, v4)
		var other net.Listener
		if err := outside.ns.Do(func() (err error) {
			other, err = net.Listen("tcp", netip.AddrPortFrom(host, 2222).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { other.Close() })
		go func() {
			for {
				c, err := other.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte("host outside\n"))
				c.Close()
			}
		}()
		nodePort := uint16(30081)
		if !v4 {
			nodePort = 30086
		}
		for _, tt := range []struct {
			what string
			from *client
			to   netip.AddrPort
			want string
		}{
			{"a pod to another port", pod, netip.AddrPortFrom(host, 2222), "host outside"},
			{"the node to another port", node, netip.AddrPortFrom(host, 2222), "host outside"},
			{"a pod to the Service", pod, netip.AddrPortFrom(host, 80), "web"},
			{"the node to the Service", node, netip.AddrPortFrom(host, 80), "web"},
			{"the host to a node port", outside, netip.AddrPortFrom(own, nodePort), "web"},
		} {
			got, err := hello(tt.from.ns, tt.to)
			if err != nil || !strings.Contains(got, tt.want) {
				t.Errorf("%s, %s: %q, %v; want the answer of %s", tt.what, tt.to, got, err, tt.want)
			}
		}
		for where, to := range map[string]netip.Addr{"outside": own, "client": host, "node/node1": host} {
			if out, err := labtest.Run(l.Exec(where, "ping", "-c1", "-W5", to.String())); err != nil {
				t.Errorf("%s does not reach %s: %v: %s", where, to, err, out)
			}
		}
	}
}

// hello returns what a server says to a client in a namespace.
func hello(ns podns.Namespace, to netip.AddrPort) (answer string, err error) {
	err = ns.Do(func() error {
		patience := testenv.Patience(5 * time.Second)
		c, err := net.DialTimeout("tcp", to.String(), patience)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		buf := make([]byte, 512)
		n, err := c.Read(buf)
		answer = string(buf[:n])
		return err
	})
	return answer, err
}
