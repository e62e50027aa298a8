// A node that goes on scoring while its model changes: go run . DIRECTORY, or go run . http://HOST:PORT of a vmafx-sidecar.
package main

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

const nFeatures, interval, timeout, mostBytes = 80, time.Second, 30 * time.Second, 50_000_000

// Model is a checkpoint: its ONNX file, and what its JSON says of it.
type Model struct {
	ONNX      []byte `json:"-"`
	Name      string `json:"name"`
	SHA256    string `json:"sha256"`
	NFeatures int    `json:"n_features"`
}

// read gives a file of a checkpoint, and the checkpoint's name if a sidecar sent it.
func read(client *http.Client, url string) ([]byte, string, error) {
	response, err := client.Get(url)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, mostBytes+1))
	if err == nil && (response.StatusCode != http.StatusOK || len(data) > mostBytes) {
		err = fmt.Errorf("%s: %s, %d bytes", url, response.Status, len(data))
	}
	return data, response.Header.Get("X-Vmafx-Model-Version"), err
}

// fetch gives the stable model of a directory or a sidecar, whole and of one version; nil if its SHA-256 is the known one.
func fetch(place, known string) (*Model, error) {
	client, base, link := &http.Client{Timeout: timeout}, place+"/models/", "stable.onnx"
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if !strings.Contains(place, "://") {
		target, err := os.Readlink(place + "/stable.onnx") // once: all that is read has the name of its target
		if err != nil {
			return nil, err
		}
		client.Transport, base, link = http.NewFileTransport(http.Dir(place)), "file:///", target
	}
	digest, version, err := read(client, base+link+".sha256")
	if err != nil || string(digest) == known+"\n" {
		return nil, err
	}
	name := cmp.Or(version, strings.TrimSuffix(link, ".onnx"))
	data, _, errData := read(client, base+name+".onnx")
	about, _, errAbout := read(client, base+name+".json")
	model := &Model{ONNX: data}
	if err := errors.Join(errData, errAbout, json.Unmarshal(about, model)); err != nil {
		return nil, err
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	if sum+"\n" != string(digest) || sum != model.SHA256 || name != model.Name || model.NFeatures != nFeatures {
		return nil, fmt.Errorf("%s: SHA-256 %s, %d features; JSON: %.64q, %.64q; digest: %.64q", name, sum, model.NFeatures, model.Name, model.SHA256, digest)
	}
	return model, nil
}

// follow calls load with each new model; if it fails, again.
func follow(place string, load func(*Model) error) {
	for known, told := "", ""; ; time.Sleep(interval) {
		model, err := fetch(place, known)
		if model != nil {
			if err = load(model); err == nil {
				known = model.SHA256
			}
		}
		if err != nil && err.Error() != told {
			log.Print(err)
		}
		told = fmt.Sprint(err)
	}
}

func main() {
	var current atomic.Pointer[Model]
	go follow(os.Args[1], func(model *Model) error {
		current.Store(model) // a node makes a session of model.ONNX, tries it, and stores that
		return nil
	})
	for jobs := bufio.NewScanner(os.Stdin); jobs.Scan(); { // a line stands for what a node scores, by one whole model
		if model := current.Load(); model != nil {
			fmt.Println(jobs.Text(), "scored by", model.Name)
		}
	}
}
