package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"time"

	"github.com/weft-cni/weft/test/e2e/probe/wire"
)

// transfer sends random bytes to a probe's /sink over one TCP connection and compares length and hash.
func transfer(args []string) error {
	flags := flag.NewFlagSet("transfer", flag.ContinueOnError)
	to := flags.String("to", "", "ADDRESS:PORT of a probe's HTTP server")
	size := flags.Int64("bytes", 50_000_000, "how much to send")
	timeout := flags.Duration("timeout", time.Minute, "time limit for all of it")
	if err := flags.Parse(args); err != nil {
		return err
	}
	result, err := transferTo("http://"+*to+"/sink", *size, *timeout)
	if err != nil {
		return err
	}
	return printJSON(result)
}

func transferTo(url string, size int64, timeout time.Duration) (wire.Transfer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	hash := sha256.New()
	body := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), hash)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return wire.Transfer{}, err
	}
	request.ContentLength = size
	start := time.Now()
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return wire.Transfer{}, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return wire.Transfer{}, fmt.Errorf("%s answers %s", url, response.Status)
	}
	var sunk wire.Transfer
	if err := json.NewDecoder(response.Body).Decode(&sunk); err != nil {
		return wire.Transfer{}, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	sent := wire.Transfer{Bytes: size, SHA256: hex.EncodeToString(hash.Sum(nil))}
	if sunk != sent {
		return wire.Transfer{}, fmt.Errorf("sent %+v, arrived %+v", sent, sunk)
	}
	sent.Seconds = time.Since(start).Seconds()
	return sent, nil
}
