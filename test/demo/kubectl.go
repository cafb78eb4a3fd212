package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// commandTimeout bounds one command of the tour; the longest sends a few pings.
const commandTimeout = 30 * time.Second

// kubectl is the cluster's kubectl and how it reaches the cluster.
type kubectl struct{ program, kubeconfig string }

// run runs a command, with input unless that is empty, and returns its standard output.
func (k kubectl) run(ctx context.Context, input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.program, append([]string{"--kubeconfig=" + k.kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return stdout.String(), fmt.Errorf("%s: %w\n%s%s", typed(args), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// get runs a command and decodes the JSON that it prints.
func (k kubectl) get(ctx context.Context, v any, args ...string) error {
	out, err := k.run(ctx, "", args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), v); err != nil {
		return fmt.Errorf("read the answer of %s: %w", typed(args), err)
	}
	return nil
}

// typed is a kubectl command the way a person types it into a shell.
func typed(args []string) string {
	words := []string{"kubectl"}
	for _, a := range args {
		if strings.ContainsAny(a, " []*?$\"'\\|&;<>(){}") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}
