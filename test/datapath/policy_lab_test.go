//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/labtest"
	"github.com/weft-cni/weft/test/lab/podns"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// walled is a lab whose pods and policies change: one file of manifests for each part, in a directory that the lab
// follows.
type walled struct {
	*labtest.Lab
	dir string
	// files is where the machine sees each node's own files.
	files map[string]string
}

func upWalled(t *testing.T, name string, files map[string]string) *walled {
	t.Helper()
	w := &walled{dir: labtest.Write(t, files), files: map[string]string{}}
	w.Lab = labtest.Up(t, name, "-f", w.dir, "--nodes=2", "--ip-family=dual")
	for _, n := range w.Status().Nodes {
		w.files[n.Name] = n.Files
	}
	return w
}

// write replaces one file, at once: the lab must not see half of it. It returns the time of the edit.
func (w *walled) write(t *testing.T, name string, parts ...string) time.Time {
	t.Helper()
	next := filepath.Join(w.dir, name+".next") // no manifest by its name
	if err := os.WriteFile(next, []byte(strings.Join(parts, "")), 0o644); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := os.Rename(next, filepath.Join(w.dir, name)); err != nil {
		t.Fatal(err)
	}
	return now
}

// pod waits for a pod and opens its network.
func (w *walled) pod(t *testing.T, name string) *client {
	t.Helper()
	var found lab.PodStatus
	testenv.Eventually(t, 20*time.Second, func() (err error) {
		s := w.Status()
		if s.Problem != "" {
			return errors.New(s.Problem)
		}
		found, err = s.Find(name)
		return err
	})
	return openClient(t, w.Status(), found.Namespace+"/"+found.Name, "", "pod")
}

// gone waits until there is no such pod.
func (w *walled) gone(t *testing.T, name string) {
	t.Helper()
	testenv.Eventually(t, 20*time.Second, func() error {
		if _, err := w.Status().Find(name); err == nil {
			return fmt.Errorf("pod %s is still there", name)
		}
		return nil
	})
}

func (w *walled) node(t *testing.T, name string) lab.NodeStatus {
	t.Helper()
	for _, n := range w.Status().Nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("no node %s", name)
	return lab.NodeStatus{}
}

// host opens a node's own network.
func (w *walled) host(t *testing.T, name string) *client {
	t.Helper()
	n := w.node(t, name)
	c := &client{name: "node/" + name, node: name, kind: "node", ips: n.Addrs}
	var err error
	if c.ns, err = podns.Open(fmt.Sprintf("/proc/%d/ns/net", n.Sandbox.Holder.PID)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ns.Close() })
	return c
}

// forgetAddresses takes away the record of the addresses that a node gave last. Its agent, when it is started again,
// goes on from the highest address in use then, so the next pod gets one that was freed.
func (w *walled) forgetAddresses(node string) {
	w.Run("node/"+node, "ovs-vsctl", "--no-wait", "remove", "Bridge", "weft", "external_ids", "weft.last-ips")
}

// serviceIPs waits for a Service's cluster IPs.
func (w *walled) serviceIPs(t *testing.T, namespace, name string) []netip.Addr {
	t.Helper()
	var ips []netip.Addr
	testenv.Eventually(t, 20*time.Second, func() error {
		for _, s := range w.Status().Services {
			if s.Namespace == namespace && s.Name == name {
				for _, text := range s.IPs {
					ips = append(ips, netip.MustParseAddr(text))
				}
				return nil
			}
		}
		return fmt.Errorf("no Service %s/%s", namespace, name)
	})
	return ips
}

// agentOf asks the agent of the node whose files the machine sees there. weftctl would say no more, and the lab's
// Status would ask every agent for everything.
func agentOf(files string) api.Client { return api.Client{Socket: files + api.DefaultSocket} }

// agentProcess finds the process that listens for questions on the node whose files the machine sees there. To ask the
// lab would have every switch read.
func agentProcess(files string) (sandbox.Process, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: files + api.DefaultSocket, Net: "unix"})
	if err != nil {
		return sandbox.Process{}, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return sandbox.Process{}, err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) {
		peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, peerErr); err != nil {
		return sandbox.Process{}, err
	}
	return sandbox.FindProcess(int(peer.Pid))
}

// status is what a node's agent says of the node.
func (w *walled) status(t *testing.T, node string) report.Status {
	t.Helper()
	s, err := agentOf(w.files[node]).Status(t.Context())
	if err != nil {
		t.Fatalf("status of %s: %v", node, err)
	}
	return s
}

// policies is what a node's agent says of all policies.
func (w *walled) policies(t *testing.T, node string) []report.Policy {
	t.Helper()
	policies, err := agentOf(w.files[node]).Policies(t.Context(), "")
	if err != nil {
		t.Fatalf("policies of %s: %v", node, err)
	}
	return policies
}

// enforces waits until exactly these policies of a namespace are about pods of the node, and nothing is under way.
func (w *walled) enforces(t *testing.T, node, namespace string, names ...string) {
	t.Helper()
	slices.Sort(names)
	testenv.Eventually(t, 20*time.Second, func() error {
		reports := w.policies(t, node)
		have := []string{}
		for _, r := range reports {
			if rest, ok := strings.CutPrefix(r.Policy, namespace+"/"); ok {
				have = append(have, rest)
			}
		}
		if !slices.Equal(have, names) {
			return fmt.Errorf("the agent of %s has the policies %v of %s, want %v", node, have, namespace, names)
		}
		status := w.status(t, node)
		if f := status.Flows; f.Programmed != f.Desired {
			return fmt.Errorf("the switch of %s has revision %d of %d", node, f.Programmed, f.Desired)
		}
		return nil
	})
}

// namespace is the manifest of one.
func namespaceManifest(name, labels string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, labels)
}

// walledPod is a pod that listens on 8080, TCP and UDP; labels and more are in the flow style of YAML.
func walledPod(namespace, name, node, labels string, meta ...string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {namespace: %s, name: %s, labels: {%s}%s}
spec: {nodeName: %s, containers: [{name: c, ports: [{name: tcp, containerPort: 8080}, {name: udp, containerPort: 8080, protocol: UDP}]}]}
`, namespace, name, labels, strings.Join(meta, ""), node)
}

// policyManifest is a NetworkPolicy with this spec, in the flow style of YAML.
func policyManifest(namespace, name, spec string) string {
	return fmt.Sprintf(
		"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: %s, name: %s}\nspec: {%s}\n",
		namespace, name, spec)
}

// walledService has 80 for the port that its endpoints have, TCP and UDP.
func walledService(namespace, name, selector string, port int) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Service
metadata: {namespace: %s, name: %s}
spec: {ipFamilyPolicy: RequireDualStack, selector: {%s}, ports: [{name: tcp, port: 80, targetPort: %[4]d}, {name: udp, port: 80, targetPort: %[4]d, protocol: UDP}]}
`, namespace, name, selector, port)
}

// mac is the pod's own.
func (c *client) mac(t *testing.T) (mac wire.MAC) {
	t.Helper()
	if err := c.ns.Do(func() error {
		link, err := net.InterfaceByName("eth0")
		if err == nil {
			copy(mac[:], link.HardwareAddr)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return mac
}

// outcome dials once.
func (c *client) outcome(proto podns.Proto, to netip.AddrPort, patience time.Duration) (podns.Answer, error) {
	defer c.underWay.begin()()
	return c.ns.Dial(proto, to, testenv.Patience(patience))
}
