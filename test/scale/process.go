package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is the agent as it runs.
type process struct {
	cmd    *exec.Cmd
	log    *os.File
	begun  time.Time
	exited chan struct{}
}

const readyURL = "http://127.0.0.1:9470/readyz"

// start starts the agent and returns when it is ready: its flows are in the switch, and it takes pods.
func (n *node) start(ctx context.Context) (time.Duration, error) {
	log, err := os.OpenFile(filepath.Join(n.dir, "logs", "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(n.agent, "run", "--node-name="+nodeName, "--config="+filepath.Join(n.dir, "config.yaml"),
		"--kubeconfig="+filepath.Join(n.dir, "kubeconfig"),
		"--cni-socket="+n.cniSocket(), "--operator-socket="+filepath.Join(n.dir, "agent.sock"), "--cni-conf-dir="+
			filepath.Join(n.dir, "net.d"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	p := &process{cmd: cmd, log: log, begun: time.Now(), exited: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return 0, errors.Join(fmt.Errorf("start the agent: %w", err), log.Close())
	}
	n.runs = p
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(p.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	for {
		why := ready(ctx)
		if why == nil {
			return time.Since(p.begun), nil
		}
		select {
		case <-p.exited:
			return 0, fmt.Errorf("the agent ended before it was ready; see %s", log.Name())
		case <-ctx.Done():
			return 0, fmt.Errorf("the agent is not ready after %s: %w", deadline, why)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// ready asks as the kubelet does. Unlike the agent's status and its metrics this does not read the switch.
func ready(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, readyURL, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(text)))
	}
	return err
}

// stop ends the agent as the kubelet does.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop the agent: %w", err)
	}
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill() // it has just ended otherwise
		<-p.exited
	}
	return p.log.Close()
}

// halt stops the node's agent, if one runs.
func (n *node) halt() error {
	if n.runs == nil {
		return nil
	}
	err := n.runs.stop()
	n.runs = nil
	return err
}

// memory is what a process holds, in MB.
type memory struct {
	now, most float64
	// file is what of now are pages of the program's file, which the kernel can drop and read again.
	file float64
}

func (p *process) memory() (memory, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return memory{}, err
	}
	var m memory
	for line := range strings.Lines(string(b)) {
		name, rest, _ := strings.Cut(line, ":")
		into := map[string]*float64{"VmRSS": &m.now, "VmHWM": &m.most, "RssFile": &m.file}[name]
		if fields := strings.Fields(rest); into != nil && len(fields) == 2 {
			kilobytes, err := strconv.ParseFloat(fields[0], 64)
			if err != nil {
				return memory{}, fmt.Errorf("read the agent's memory: %w", err)
			}
			*into = kilobytes * 1024 / 1e6
		}
	}
	return m, nil
}

// processor is how much of the processor a process has used: other programs of the machine make it wait, but change
// this little.
func processor(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const userTime, systemTime, perSecond = 11, 12, 100
	var ticks int
	for _, i := range []int{userTime, systemTime} {
		v, err := strconv.Atoi(fields[i])
		if err != nil {
			return 0, fmt.Errorf("read the processor time of process %d: %w", pid, err)
		}
		ticks += v
	}
	return time.Duration(ticks) * time.Second / perSecond, nil
}

// processors is processor of each of several processes.
func processors(pids ...int) ([]time.Duration, error) {
	used := make([]time.Duration, len(pids))
	for i, pid := range pids {
		var err error
		if used[i], err = processor(pid); err != nil {
			return nil, err
		}
	}
	return used, nil
}
