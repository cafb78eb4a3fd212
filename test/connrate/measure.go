package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/datapath/burst"
	"github.com/weft-cni/weft/test/lab"
	"github.com/weft-cni/weft/test/lab/podns"
)

const (
	labName  = "connrate"
	endpoint = 7100
	// ticks is how many of the units of /proc/PID/stat are a second (USER_HZ, proc(5)).
	ticks = 100
	// warmUp is how many connections are made before those that count.
	warmUp = 200
)

// manifests are a client on one node, a server on the other, and a Service of three endpoints on both.
func manifests() string {
	var text strings.Builder
	for _, pod := range []struct{ name, app, node string }{
		{"client", "client", "node1"}, {"server", "server", "node2"}, {"web-1", "web", "node1"}, {"web-2", "web", "node2"}, {
			"web-3", "web", "node2"},
	} {
		fmt.Fprintf(&text,
			"---\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {app: %s}}\nspec: {nodeName: %s, containers: [{name: c, ports: [{containerPort: 9}]}]}\n", pod.name, pod.app, pod.node)
	}
	fmt.Fprintf(&text,
		"---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: %d}]}\n", endpoint)
	return text.String()
}

// way is where connections go.
type way struct {
	name  string
	to    netip.AddrPort
	first uint16
}

// measure brings a lab up with a build's agent and measures every way in it.
func (o options) measure(ctx context.Context, b *build) (err error) {
	dir, err := os.MkdirTemp("", "weft-connrate-lab-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "f.yaml")
	if err := os.WriteFile(file, []byte(manifests()), 0o644); err != nil {
		return err
	}
	defer func() {
		down := command(context.WithoutCancel(ctx), "", o.weftLab, "down", "--ignore-not-found",
			"--name="+labName)
		err = errors.Join(err, down)
	}()
	if err := command(ctx, "", o.weftLab, "up", "--name="+labName, "--nodes=2", "--datapath="+o.datapath,
		"--agent="+o.agentPath, "-f", file); err != nil {
		return err
	}
	s, err := lab.ReadStatus(ctx, labName)
	if err != nil {
		return err
	}
	spaces := map[string]podns.Namespace{}
	var open []io.Closer
	defer func() {
		for _, c := range slices.Backward(open) {
			err = errors.Join(err, c.Close())
		}
	}()
	var server netip.Addr
	for _, p := range s.Pods {
		ns, err := podns.Open(p.NetNS)
		if err != nil {
			return err
		}
		open = append(open, ns)
		spaces[p.Name] = ns
		if p.Name == "client" {
			continue
		}
		if p.Name == "server" {
			server = p.IPs[0]
		}
		answerer, err := burst.Serve(ns, endpoint)
		if err != nil {
			return err
		}
		open = append(open, answerer)
	}
	service, err := netip.ParseAddr(s.Services[0].IPs[0])
	if err != nil {
		return err
	}
	for _, w := range []way{
		{"pod to pod of another node", netip.AddrPortFrom(server, endpoint), 10000},
		{"through a Service", netip.AddrPortFrom(service, 80), 30000},
	} {
		r, err := o.connect(s, spaces["client"], w)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		b.Results[w.name] = append(b.Results[w.name], r)
	}
	return nil
}

// connect measures one way.
func (o options) connect(s lab.Status, from podns.Namespace, w way) (result, error) {
	burstOf := func(first uint16, count int) burst.Burst {
		return burst.Burst{From: from, Proto: podns.TCP, To: w.to, FirstPort: first, Count: count, Workers: o.workers,
			Timeout: testenv.Patience(5 * time.Second)}
	}
	if err := burstOf(w.first, warmUp).Run(); err != nil {
		return result{}, err
	}
	before, err := switchTime(s)
	if err != nil {
		return result{}, err
	}
	begin := time.Now()
	if err := burstOf(w.first+warmUp, o.count).Run(); err != nil {
		return result{}, err
	}
	took := time.Since(begin)
	after, err := switchTime(s)
	if err != nil {
		return result{}, err
	}
	return result{PerSecond: float64(o.count) / took.Seconds(), CPU: (after - before) * 1000 / float64(o.count)}, nil
}

// switchTime is the processor time that the nodes' ovs-vswitchd have had, in seconds.
func switchTime(s lab.Status) (sum float64, err error) {
	for _, n := range s.Nodes {
		pid, err := os.ReadFile(filepath.Join(n.Files, "run/openvswitch/ovs-vswitchd.pid"))
		if err != nil {
			return 0, err
		}
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil {
			return 0, err
		}
		// The name, which is in parentheses, may have spaces. utime and stime are fields 14 and 15.
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		for _, field := range fields[11:13] {
			n, err := strconv.ParseFloat(field, 64)
			if err != nil {
				return 0, fmt.Errorf("read the processor time of %s: %w", strings.TrimSpace(string(pid)), err)
			}
			sum += n / ticks
		}
	}
	return sum, nil
}

// table shows the medians.
func table(o options, builds []*build) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d connections over TCP, IPv4, datapath %s, medians of %d\n\n", o.count, o.datapath, o.rounds)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BUILD\tWAY\tCONNECTIONS/S\tVSWITCHD CPU s PER 1,000")
	for _, b := range builds {
		for _, name := range []string{"pod to pod of another node", "through a Service"} {
			fmt.Fprintf(w, "%s\t%s\t%.0f\t%.3f\n", b.Name, name,
				median(b.Results[name], func(r result) float64 {
					return r.PerSecond
				}), median(b.Results[name], func(r result) float64 { return r.CPU }))
		}
	}
	_ = w.Flush() // a strings.Builder takes all
	return text.String()
}

func median(results []result, of func(result) float64) float64 {
	values := make([]float64, len(results))
	for i, r := range results {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
