// Package sysdump collects what a maintainer needs into one archive. Each item is collected by itself, with a time
// limit, and its failure is written down beside the others: the archive is of most use when something does not answer.
// Secrets are taken out of every item. It keeps no state; the items run on goroutines that end before Write returns.
package sysdump

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-cni/weft/internal/terminal"
)

const (
	// atMost bounds one item in time, atOnce how many run side by side.
	atMost = 30 * time.Second
	atOnce = 8
	// maxItem bounds an item's size; the end of it is kept, as a log's end matters most.
	maxItem = 64 << 20
)

// Item is a file of the archive.
type Item struct {
	// Name is its path in the archive.
	Name string
	// Collect returns the content. What it has returned beside an error is kept.
	Collect func(context.Context) ([]byte, error)
}

// Result says how an item went.
type Result struct {
	Name  string
	Size  int
	Error string
}

// Write collects the items and writes the archive, a gzipped tar below a directory of this name. It returns an error
// only when the archive cannot be written, or when no item could be collected.
func Write(ctx context.Context, w io.Writer, dir string, at time.Time, items []Item) ([]Result, error) {
	zip := gzip.NewWriter(w)
	out := tar.NewWriter(zip)
	var mu sync.Mutex
	results := make([]Result, len(items))
	var group errgroup.Group
	group.SetLimit(atOnce)
	add := func(name string, text []byte) error {
		mu.Lock()
		defer mu.Unlock()
		head := &tar.Header{Name: path.Join(dir, name), Mode: 0o600, Size: int64(len(text)), ModTime: at}
		if err := out.WriteHeader(head); err != nil {
			return err
		}
		_, err := out.Write(text)
		return err
	}
	for i, item := range items {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, atMost)
			defer cancel()
			text, err := item.Collect(ctx)
			text = Text(text[max(0, len(text)-maxItem):])
			results[i] = Result{Name: item.Name, Size: len(text)}
			if err != nil {
				results[i].Error = string(Text([]byte(err.Error())))
			}
			if len(text) == 0 {
				return nil
			}
			return add(item.Name, text)
		})
	}
	err := group.Wait()
	if err == nil {
		err = add("index.txt", index(results))
	}
	if err = errors.Join(err, out.Close(), zip.Close()); err != nil {
		return results, fmt.Errorf("write the archive: %w", err)
	}
	if !slices.ContainsFunc(results, func(r Result) bool { return r.Size > 0 }) {
		return results, errors.New("nothing could be collected")
	}
	return results, nil
}

// index lists the items and what went wrong.
func index(results []Result) []byte {
	var b strings.Builder
	for _, r := range results {
		fmt.Fprintf(&b, "%s\t%s", r.Name, terminal.Count(r.Size, "byte"))
		if r.Error != "" {
			fmt.Fprintf(&b, "\t%s", strings.ReplaceAll(r.Error, "\n", "\n\t"))
		}
		b.WriteByte('\n')
	}
	return []byte(b.String())
}
