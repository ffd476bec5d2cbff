package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
	// changed is told the digest of every new set, or why there is none.
	changed func(digest string, err error)

	set  atomic.Pointer[policy.Set]
	mu   sync.Mutex // one reload at a time; and for what follows
	last string     // what the folder held at the last reload
	admin.PolicyStatus
}

func newLivePolicy(config *configs.Config, log *slog.Logger) (*livePolicy, error) {
	p := &livePolicy{config: config, log: log}
	p.last = p.held()
	set, err := loadPolicy(config, config.Policy)
	if err != nil {
		return nil, err
	}
	p.take(set)
	return p, nil
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
	p.PolicyStatus = admin.PolicyStatus{Digest: set.Digest(), Since: time.Now(), Folder: p.config.Policy, Warnings: set.Warnings()}
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
	p.last = p.held()
	set, err := loadPolicy(p.config, p.config.Policy)
	if err != nil {
		p.log.Error("policy does not load; the last good one stays in force", "digest", p.Digest, "err", err.Error())
		p.Error, p.ErrorTime = err.Error(), time.Now()
		p.changed("", err)
		return
	}
	if set.Digest() == p.Digest {
		p.log.Info("policy is as it was", "digest", p.Digest)
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
	if errors.As(err, &problems) {
		for i := range problems {
			problems[i].File = filepath.Join(folder, problems[i].File)
		}
		return nil, problems
	}
	if err != nil {
		return nil, fmt.Errorf("loading policy from %s: %w", folder, err)
	}
	return set, nil
}

// knownTo is what policy rules may name under this configuration.
func knownTo(config *configs.Config) policy.Known {
	known := policy.Known{
		Approvers: append([]string{}, config.ApproverSets()...), // none is none, and not "anything"
		Clusters:  clusterNames(config), Tools: map[string][]action.Scope{},
		Resources: kube.Builtin().Names(),
	}
	for _, t := range tools.All(known.Clusters) {
		known.Tools[t.Name] = t.Scopes
	}
	return known
}
