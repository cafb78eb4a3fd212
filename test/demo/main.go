// Command demo deploys a small application on a cluster of test/cluster and gives a tour of it: pods on their nodes,
// traffic between nodes, and the flows that carried it, with Kubernetes' names. `make demo` calls it.
//
// It runs kubectl and shows each command as a user would type it. Everything happens on one goroutine; the application
// stays, so that people can go on where the tour ends.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/weft-cni/weft/test/cluster/state"
)

func main() {
	dir := flag.String("dir", ".cluster", "state directory of the cluster")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *dir)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dir string) error {
	record, err := state.Load(dir)
	if err != nil {
		return err
	}
	t := tour{kube: kubectl{program: record.Kubectl(), kubeconfig: record.Kubeconfig()}, out: newPrinter(os.Stdout),
		record: record}
	return t.run(ctx)
}
