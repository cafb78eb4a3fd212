package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/weft-cni/weft/test/lab/manifest"
)

// followEvery is how often the manifests are looked at.
const followEvery = 200 * time.Millisecond

// load reads the manifests, and remembers what kustomizations are built from.
func (l *Lab) load() (manifest.Set, error) {
	return l.opt.load(func(file string) { l.built[file] = true })
}

// look tells one state of the manifests from another without reading them.
func (l *Lab) look() (string, error) {
	files, err := manifest.Files(l.opt.Manifests)
	if err != nil {
		return "", err
	}
	var seen string
	for _, file := range append(files, slices.Sorted(maps.Keys(l.built))...) {
		info, err := os.Stat(file)
		if errors.Is(err, fs.ErrNotExist) {
			seen += fmt.Sprintln(file, "does not exist") // a kustomization has one of several names
			continue
		}
		if err != nil {
			return "", err
		}
		seen += fmt.Sprintln(file, info.Size(), info.ModTime().UnixNano())
	}
	return seen, nil
}

// follow applies every change of the manifests until the context ends. Manifests with mistakes change nothing; what is
// wrong with them is shown by Status until they are right.
func (l *Lab) follow(ctx context.Context) error {
	ticker := time.NewTicker(followEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		seen, err := l.look()
		if err != nil {
			l.setProblem(err)
			continue
		}
		if seen == l.seen {
			continue
		}
		err = l.reload(ctx)
		l.setProblem(err)
		// What could not be applied is tried again; what is wrong in the files waits for the next edit.
		if err == nil || errors.As(err, &manifest.Problems{}) {
			l.seen = seen
		}
	}
}

func (l *Lab) reload(ctx context.Context) error {
	set, err := l.load()
	if err != nil {
		return err
	}
	if !reflect.DeepEqual(set.Nodes, l.set.Nodes) {
		return manifest.Problems{{File: strings.Join(append(slices.Clone(l.opt.Manifests), l.opt.Kustomizations...), ", "),
			Text: "the nodes changed, which a lab that stands cannot follow; use weft-lab down and up"}}
	}
	if err := l.apply(ctx, set); err != nil {
		return err
	}
	l.log.Info("applied the manifests", "pods", len(set.Pods), "services", len(set.Services), "policies",
		len(set.Policies))
	return nil
}

func (l *Lab) setProblem(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	if problem != l.problem && problem != "" {
		l.log.Error("the manifests cannot be applied", "err", problem)
	}
	l.problem = problem
}
