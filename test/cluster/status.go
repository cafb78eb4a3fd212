package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/weft-cni/weft/test/cluster/state"
	"github.com/weft-cni/weft/test/lab/sandbox"
)

// status prints what stands and whether it is well.
func status(ctx context.Context, out io.Writer, c state.Cluster) error {
	ready, err := readyNodes(ctx, c)
	if err != nil {
		fmt.Fprintln(out, "The API server does not answer:", err)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tADDRESSES\tSTATUS\tNOT RUNNING\tPROCESSES\tMEMORY")
	row := func(name, addrs, condition string, processes map[string]sandbox.Process, cgroup sandbox.Cgroup) error {
		pids, err := cgroup.PIDs()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%d MiB\n", name, addrs, condition, dead(processes), len(pids),
			memory(pids)>>20)
		return err
	}
	condition := "Ready"
	if err != nil {
		condition = "NotReady"
	}
	if err := row(state.ControlPlaneName, list(state.Addrs(c.Plan.ControlPlane())), condition, c.Processes,
		c.ControlPlane.Cgroup()); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		condition := "NotReady"
		if isReady, known := ready[n.Name]; !known {
			condition = "Unknown"
		} else if isReady {
			condition = "Ready"
		}
		n.Processes["node"] = n.Sandbox.Holder
		if err := row(n.Name, list(n.Addrs), condition, n.Processes, n.Sandbox.Cgroup()); err != nil {
			return err
		}
	}
	outside := map[string]sandbox.Process{"host": c.Outside.Sandbox.Holder}
	if err := row(state.OutsideName, list(slices.Concat(c.Outside.Addrs, c.Outside.Beyond)), "-", outside,
		c.Outside.Sandbox.Cgroup()); err != nil {
		return err
	}
	fmt.Fprintf(table, "\nkubeconfig\t%s\nAPI server\t%s\n", c.Kubeconfig(), c.APIServer)
	return table.Flush()
}

// dead lists the recorded processes that have ended.
func dead(processes map[string]sandbox.Process) string {
	var names []string
	for name, p := range processes {
		if !p.Alive() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ",")
}

// memory is the processes' share of the machine's memory in bytes, with pages that several map divided between them. A
// process that ends meanwhile counts as nothing.
func memory(pids []int) int {
	total := 0
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		total += proportionalSize(data)
	}
	return total
}

func proportionalSize(smaps []byte) int {
	for line := range bytes.Lines(smaps) {
		fields := strings.Fields(string(line))
		if len(fields) == 3 && fields[0] == "Pss:" {
			if kib, err := strconv.Atoi(fields[1]); err == nil {
				return kib << 10
			}
		}
	}
	return 0
}
