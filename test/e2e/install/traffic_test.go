//go:build e2e

package install

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/weft-cni/weft/test/e2e/internal/probeimage"
	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// namespace has the pods of the traffic: a client and a server on every node, and a Service of the servers.
const namespace = "path"

const pods = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: path, labels: {app: %[2]s}}
spec:
  nodeName: %[3]s
  terminationGracePeriodSeconds: 1
  containers:
    - name: probe
      image: %[4]s
      imagePullPolicy: Never
      args: [serve, --echo=7000, --http=7080]
      securityContext: {capabilities: {add: [NET_RAW, NET_ADMIN]}}
---`

const services = `
apiVersion: v1
kind: Service
metadata: {name: server, namespace: path}
spec: {selector: {app: server}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: path}
spec: {selector: {app: none}, ports: [{port: 7000}]}
`

// deployPods starts the pods, unless they run already.
func (w *world) deployPods(t *testing.T) {
	t.Helper()
	var text strings.Builder
	text.WriteString("apiVersion: v1\nkind: Namespace\nmetadata: {name: path}\n---")
	for i, n := range w.record.Nodes {
		for _, app := range []string{"client", "server"} {
			fmt.Fprintf(&text, pods, fmt.Sprint(app, i), app, n.Name, w.probe.Reference)
		}
	}
	text.WriteString(services)
	w.must(t, w.older, "kubectl apply -f - <<'EOF'\n"+text.String()+"\nEOF\n"+
		"kubectl -n path wait --for=condition=Ready pod --all --timeout=2m")
}

// traffic are probes that send until they are told to stop.
type traffic struct{ probes []*probe }

type probe struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.Closer
	out    *bufio.Reader
	stderr bytes.Buffer
}

// startTraffic pings, and sends through TCP connections, from the client of each node to the server of the next, and
// opens connections to the Service.
func (w *world) startTraffic(t *testing.T) *traffic {
	t.Helper()
	w.deployPods(t)
	clusterIP := w.must(t, w.older, "kubectl -n path get service server -o 'jsonpath={.spec.clusterIP}'")
	tr := &traffic{}
	for i := range w.record.Nodes {
		next := (i + 1) % len(w.record.Nodes)
		server := w.must(t, w.older, fmt.Sprintf("kubectl -n path get pod server%d -o 'jsonpath={.status.podIP}'", next))
		client := fmt.Sprint("client", i)
		tr.start(t, w, client, "ping", server)
		tr.start(t, w, client, "stream", "--to="+server+":7000")
		tr.start(t, w, client, "knock", clusterIP+":7000")
	}
	return tr
}

// start returns when the probe sends.
func (tr *traffic) start(t *testing.T, w *world, pod string, args ...string) {
	t.Helper()
	p := &probe{name: pod + " " + strings.Join(args, " ")}
	p.cmd = exec.Command(w.record.Kubectl(), append([]string{"--kubeconfig=" + w.record.Kubeconfig(), "-n", namespace, "exec",
		"-i", pod, "--", probeimage.Path}, args...)...)
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, p.out, p.cmd.Stderr = stdin, bufio.NewReader(out), &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	if line, err := p.out.ReadString('\n'); err != nil || strings.TrimSpace(line) != wire.Ready {
		t.Fatalf("%s: %q, %v: %s", p.name, line, err, p.stderr.String())
	}
	tr.probes = append(tr.probes, p)
}

// wantNoLoss ends the traffic.
func (tr *traffic) wantNoLoss(t *testing.T) {
	t.Helper()
	sent, lost := 0, 0
	for _, p := range tr.probes {
		if err := p.stdin.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range tr.probes {
		var reply wire.SteadyReply
		err := json.NewDecoder(p.out).Decode(&reply)
		if err != nil || len(reply.Series) == 0 {
			t.Fatalf("%s: %v: %s", p.name, err, p.stderr.String())
		}
		for _, s := range reply.Series {
			sent += s.Sent
			lost += s.Sent - s.Received
			if s.Sent != s.Received || s.SendErrors > 0 || s.Sent == 0 {
				t.Errorf("%s: %d sent, %d answered, lost %v, %d not sent, %s", p.name, s.Sent, s.Received, s.Lost, s.SendErrors,
					s.FirstError)
			}
		}
	}
	t.Logf("%d sent, %d lost", sent, lost)
}
