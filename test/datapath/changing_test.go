//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
)

// changing is a lab whose endpoints come and go.
type changing struct {
	*labtest.Lab
	file    string
	base    string   // manifests that stay
	now     []string // those of the endpoints
	service tableService
	// echoPort is the node port of the Service's port 81.
	echoPort uint16
	clients  []*client
}

// upChanging brings up a lab with three kinds of clients and a Service that more is said about, over these endpoints.
func upChanging(t *testing.T, name, more string, endpoints ...string) *changing {
	t.Helper()
	c := &changing{now: slices.Clone(endpoints), service: tableService{name: "web", ports: map[podns.Proto]uint16{}}}
	c.base = podManifest("client", "client", "node1", 9, "") + podManifest("host", "client", "node3", 9, hostNetwork) +
		fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}%s
  ports: [{name: tcp, port: 80, targetPort: tcp}, {name: udp, port: 80, targetPort: udp, protocol: UDP}, {name: echo, port: 81, targetPort: 7100}]
`, more)
	dir := labtest.Write(t, map[string]string{"f.yaml": c.base + strings.Join(endpoints, "")})
	c.file = filepath.Join(dir, "f.yaml")
	c.Lab = labtest.Up(t, name, "-f", c.file, "--nodes=3")
	s := c.Status()
	for _, one := range s.Services {
		c.service.ips = []netip.Addr{netip.MustParseAddr(one.IPs[0])}
		for _, text := range one.Ports {
			var port, nodePort uint16
			var proto string
			if _, err := fmt.Sscanf(text, "%d:%d/%s", &port, &nodePort, &proto); err != nil {
				t.Fatal(err)
			}
			if port == 80 {
				c.service.ports[podns.Proto(proto)] = nodePort
			} else {
				c.echoPort = nodePort
			}
		}
	}
	c.clients = []*client{openClient(t, s, "client", "node1", "pod"), openClient(t, s, "host", "node3", "node"),
		openClient(t, s, "outside", "", "outside")}
	return c
}

// at is where a client finds the Service: inside at its cluster IP, outside at node2.
func (c *changing) at(from *client, proto podns.Proto) netip.AddrPort {
	if from.kind == "outside" {
		for _, n := range c.Status().Nodes {
			if n.Name == "node2" {
				return netip.AddrPortFrom(n.Addrs[0], c.service.ports[proto])
			}
		}
	}
	return netip.AddrPortFrom(c.service.ips[0], 80)
}

// web is an endpoint's manifest.
func web(name, node string) string { return podManifest(name, "web", node, 8080, "") }

// isOf tells whether a manifest is that of a pod.
func isOf(text, name string) bool { return strings.Contains(text, "name: "+name+", labels:") }

// leaving is the same for one that terminates.
func leaving(name, node string) string {
	return strings.Replace(web(name, node), "metadata: {", `metadata: {deletionTimestamp: "2026-01-02T03:04:05Z", `, 1)
}

// write makes these the manifests of the endpoints.
func (c *changing) write(t *testing.T, endpoints ...string) {
	t.Helper()
	c.now = slices.Clone(endpoints)
	if err := os.WriteFile(c.file, []byte(c.base+strings.Join(endpoints, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// become changes the endpoints, and returns when the lab has applied it.
func (c *changing) become(t *testing.T, endpoints ...string) {
	t.Helper()
	c.write(t, endpoints...)
	testenv.Eventually(t, 30*time.Second, func() error {
		s := c.Status()
		if s.Problem != "" {
			return errors.New(s.Problem)
		}
		names, want := 0, len(endpoints)
		for _, p := range s.Pods {
			if p.Labels["app"] == "web" {
				names++
				if !slices.ContainsFunc(endpoints, func(text string) bool { return isOf(text, p.Name) }) {
					return fmt.Errorf("pod %s is still there", p.Name)
				}
			}
		}
		if names != want {
			return fmt.Errorf("%d endpoints, want %d", names, want)
		}
		return nil
	})
}

// replace changes the endpoints as a cluster does: those that go terminate first, and serve on until no node sends to
// them any more, and until the connections have ended that were under way then. (In a cluster a grace period is long
// enough for that.)
func (c *changing) replace(t *testing.T, endpoints ...string) {
	t.Helper()
	var going []string
	var addrs []netip.Addr
	for _, text := range c.now {
		if !slices.Contains(endpoints, text) {
			going = append(going, strings.Replace(text, "metadata: {", `metadata: {deletionTimestamp: "2026-01-02T03:04:05Z", `,
				1))
			for _, p := range c.Status().Pods {
				if isOf(text, p.Name) {
					addrs = append(addrs, p.IPs...)
				}
			}
		}
	}
	c.become(t, slices.Concat(endpoints, going)...)
	for _, n := range c.Status().Nodes {
		testenv.Eventually(t, 20*time.Second, func() error {
			// What the datapath keeps follows the flows and groups a moment later.
			sends := c.Run("node/"+n.Name, "sh", "-ec",
				"ovs-ofctl -O OpenFlow15 dump-groups weft; ovs-ofctl -O OpenFlow15 dump-flows weft table=45; ovs-appctl "+
					"dpctl/dump-flows")
			for _, addr := range addrs {
				if strings.Contains(sends, "dst="+addr.String()+":") {
					return fmt.Errorf("%s still sends to %s", n.Name, addr)
				}
			}
			return nil
		})
	}
	for _, from := range c.clients {
		begun := from.underWay.begun()
		testenv.Eventually(t, 20*time.Second, func() error {
			if left := from.underWay.before(begun); left > 0 {
				return fmt.Errorf("%d connections of %s do not end", left, from.name)
			}
			return nil
		})
	}
	c.become(t, endpoints...)
}

// restartAgents kills every node's agent, does something while none is there, and waits until the lab has started them
// again.
func (c *changing) restartAgents(t *testing.T, meanwhile func()) {
	t.Helper()
	before := map[string]lab.NodeStatus{}
	for _, n := range c.Status().Nodes {
		before[n.Name] = n
		if err := n.Agent.Signal(9); err != nil {
			t.Fatal(err)
		}
	}
	meanwhile()
	testenv.Eventually(t, 30*time.Second, func() error {
		for _, n := range c.Status().Nodes {
			if n.Agent == before[n.Name].Agent || n.Problem != "" {
				return fmt.Errorf("the agent of %s is not back: %s", n.Name, n.Problem)
			}
		}
		return nil
	})
}
