// Command probe is the whole of a test pod: servers, clients and a frame gun in one static binary, so that the pod's
// image needs nothing else.
//
// The suite in test/e2e runs it through `kubectl exec`: requests come as JSON on standard input or as flags, replies go
// as JSON to standard output. Long-running commands print wire.Ready when they are at work and end when their standard
// input is closed. Each invocation is a process of its own and shares no state with another.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// commands maps a name to what runs it with the rest of the arguments.
var commands = map[string]func(args []string) error{
	"serve":    serve,
	"dial":     dial,
	"transfer": transfer,
	"ping":     ping,
	"stream":   stream,
	"knock":    knock,
	"resolve":  resolve,
	"spoof":    spoof,
	"sniff":    sniff,
	"links":    links,
	"true":     func([]string) error { return nil },
	"false":    func([]string) error { return fmt.Errorf("false, as asked") },
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: probe serve|dial|transfer|ping|stream|knock|resolve|spoof|sniff|links|true|false")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintf(os.Stderr, "probe %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

func readJSON(v any) error {
	if err := json.NewDecoder(os.Stdin).Decode(v); err != nil {
		return fmt.Errorf("read the request from standard input: %w", err)
	}
	return nil
}

func printJSON(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }

// ready tells the caller that the command is at work; the channel is closed when the caller closes our standard input.
func ready() <-chan struct{} {
	fmt.Println(wire.Ready)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The caller sends nothing; whatever ends the input ends the command.
		_, _ = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
	}()
	return done
}
