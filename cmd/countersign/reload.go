package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"countersign/action"
	"countersign/admin"
	"countersign/configs"
	"countersign/kube"
	"countersign/policy"
	"countersign/strictyaml"
	"countersign/tools"
)

// watchEvery is how often the policy folder is looked at. Looking is cheap, and
// sees what file notifications do not: network file systems, and the way that
// Kubernetes exchanges a mounted ConfigMap.
const watchEvery = time.Second

// livePolicy is the set in force, and how it came to be.
type livePolicy struct {
	config *configs.Config
	log    *slog.Logger
	// load reads the folder. What it gives is one state of it only if the folder
	// held the same before.
	load func() (*policy.Set, error)
	// changed is told the digest of every set that comes into force, or again
	// into its folder after something broken, and why there is none.
	changed func(digest string, err error)

	set  atomic.Pointer[policy.Set]
	mu   sync.Mutex // one reload at a time; and for what follows
	last string     // what the folder held when it was last loaded
	admin.PolicyStatus
}

func newLivePolicy(config *configs.Config, log *slog.Logger) (*livePolicy, error) {
	p := &livePolicy{config: config, log: log, load: func() (*policy.Set, error) { return loadPolicy(config, config.Policy) }}
	for range 10 {
		set, whole, err := p.read()
		switch {
		case !whole:
			continue
		case err != nil:
			return nil, err
		}
		p.take(set)
		return p, nil
	}
	return nil, fmt.Errorf("loading policy from %s: the folder changes while it is read", config.Policy)
}

// read loads the folder. whole is false when the folder was changed meanwhile:
// what was read may be partly the old and partly the new, which nobody wrote.
func (p *livePolicy) read() (set *policy.Set, whole bool, err error) {
	held := p.held()
	if set, err = p.load(); err != nil {
		whole = p.held() == held
	} else {
		whole = set.Digest() == held
	}
	if whole {
		p.last = held
	}
	return set, whole, err
}

// held is a mark of what the policy folder holds now.
func (p *livePolicy) held() string {
	digest, err := policy.Digest(os.DirFS(p.config.Policy))
	if err != nil {
		return err.Error()
	}
	return digest
}

func (p *livePolicy) take(set *policy.Set) {
	p.set.Store(set)
	p.PolicyStatus = admin.PolicyStatus{Digest: set.Digest(), Since: time.Now(), Folder: p.config.Policy, Info: set.Info(), Warnings: set.Warnings()}
	if off := p.Info.GuardsOff; len(off) > 0 {
		p.log.Warn("policy switches built-in guards off", "guardsOff", off)
	}
	for _, warning := range set.Warnings() {
		p.log.Warn("policy", "warning", warning)
	}
}

// watch reloads when the folder has changed and then been left alone for one
// look, so that a file is not read while it is written; and on SIGHUP.
func (p *livePolicy) watch(ctx context.Context, hangup <-chan os.Signal) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	before := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			p.reload()
		case <-tick.C:
			now := p.held()
			if p.mu.Lock(); now != p.last && now == before {
				p.mu.Unlock()
				p.reload()
			} else {
				p.mu.Unlock()
			}
			before = now
		}
	}
}

// reload puts what the folder holds into force. When it does not load, the last
// good set stays, and it is said where operators look: log, status and audit log.
func (p *livePolicy) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	set, whole, err := p.read()
	if !whole {
		p.log.Info("policy changed while it was read; the next look takes it")
		return
	}
	if err != nil {
		p.log.Error("policy does not load; the last good one stays in force", "digest", p.Digest, "err", err.Error())
		p.Error, p.ErrorTime = err.Error(), time.Now()
		p.changed("", err)
		return
	}
	if set.Digest() == p.Digest {
		p.log.Info("policy is as it was", "digest", p.Digest)
		if p.Error != "" { // the last word on record must not be that it does not load
			p.changed(p.Digest, nil)
		}
		p.Error, p.ErrorTime = "", time.Time{}
		return
	}
	p.log.Info("policy changed", "digest", set.Digest(), "before", p.Digest)
	p.changed(set.Digest(), nil) // on record before it is in force
	p.take(set)
}

func (p *livePolicy) status() admin.PolicyStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.PolicyStatus
}

// loadPolicy loads a policy folder for a configuration.
func loadPolicy(config *configs.Config, folder string) (*policy.Set, error) {
	return readPolicy(folder, knownTo(config))
}

// readPolicy loads a policy folder; a mistake names the file with its folder.
func readPolicy(folder string, known policy.Known) (*policy.Set, error) {
	set, err := policy.Load(os.DirFS(folder), known)
	var problems strictyaml.Problems
	if err != nil && !errors.As(err, &problems) {
		err = fmt.Errorf("loading policy from %s: %w", folder, err)
	}
	return set, inFolder(folder, err)
}

// knownTo is what policy rules may name under this configuration.
func knownTo(config *configs.Config) policy.Known {
	kinds := kube.Builtin()
	known := policy.Known{
		Approvers: append([]string{}, config.ApproverSets()...), // none is none, and not "anything"
		Clusters:  clusterNames(config), Tools: map[string][]action.Scope{},
		Resources: kinds.Names(),
	}
	for _, name := range known.Resources {
		if r, err := kinds.Resolve(context.Background(), "", "", name); err == nil && r.GroupResource() == name && !r.Namespaced {
			known.Outside = append(known.Outside, name)
		}
	}
	for _, t := range tools.All(known.Clusters) {
		known.Tools[t.Name] = t.Scopes
	}
	return known
}
