package configs

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Audit is about the log of what happened.
type Audit struct {
	Anchors Anchors `yaml:"anchors"`
	// Recipients are age public keys, age1..., of auditors. Payloads are then also kept
	// as they were before they were masked, encrypted to them: the server cannot read
	// them again.
	Recipients []string `yaml:"recipients"`
	// EmergencyFile is where outcomes go that the log cannot take; emergency.jsonl in
	// Data when absent. It is best on another volume.
	EmergencyFile string `yaml:"emergencyFile"`
	// Retention is for how long the log is kept; for good when absent.
	Retention Retention `yaml:"retention"`
}

// Retention takes out of the log what is older, and keeps its hashes, so that what is
// left can still be verified. 0 keeps all; 24h is the least.
type Retention struct {
	// Payloads are the bodies of requests and answers.
	Payloads time.Duration `yaml:"payloads"`
	// Records are the records themselves, and with them what is left of their payloads.
	Records time.Duration `yaml:"records"`
}

// Anchors are the places where the log's signed checkpoints are put, so that
// whoever edits the log would have to change them too. Without any the file is on.
type Anchors struct {
	// Every is how often that happens, 1m to 24h, if the log has grown; 10m when
	// absent. It happens at each start and stop of the server as well.
	Every *time.Duration `yaml:"every"`
	// File is a file that they are appended to; checkpoints in Data when absent,
	// and none at all for "none", which needs another anchor.
	File string `yaml:"file"`
	// ConfigMap is where each becomes an immutable ConfigMap; nil is nowhere.
	ConfigMap *ConfigMapAnchor `yaml:"configMap"`
	// Witnesses are asked to sign them.
	Witnesses []Witness `yaml:"witnesses"`
}

// ConfigMapAnchor is a namespace in which the server may create ConfigMaps and do
// nothing else.
type ConfigMapAnchor struct {
	// Cluster is the name of one of clusters; its credential is used.
	Cluster   string `yaml:"cluster"`
	Namespace string `yaml:"namespace"`
}

// Witness is a server of somebody else (C2SP tlog-witness) that signs a checkpoint
// only if it continues the one that it signed before.
type Witness struct {
	// URL is its submission prefix; https, or http on this machine.
	URL string `yaml:"url"`
	// Key is its public key, NAME+HASH+KEY.
	Key string `yaml:"key"`
}

// NoFile, for Anchors.File, is no file.
const NoFile = "none"

const (
	defaultAnchorEvery = 10 * time.Minute
	minAnchorEvery     = time.Minute
	maxAnchorEvery     = 24 * time.Hour
	// maxWitnesses bounds how many signatures a checkpoint gets; whoever reads notes
	// need not accept more than 16 (C2SP signed-note).
	maxWitnesses = 8
)

var (
	namespace = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	vkey      = regexp.MustCompile(`^[^+\s]+\+[0-9a-f]{8}\+[A-Za-z0-9+/]+=*$`)
)

func (c *Config) checkAnchors(report func(at []any, format string, args ...any)) {
	a := c.Audit.Anchors
	at := func(below ...any) []any { return append([]any{"audit", "anchors"}, below...) }
	if a.Every != nil && (*a.Every < minAnchorEvery || *a.Every > maxAnchorEvery) {
		report(at("every"), "every is %s; from %s to %s is expected", a.Every, minAnchorEvery, maxAnchorEvery)
	}
	if a.File == NoFile && a.ConfigMap == nil && len(a.Witnesses) == 0 {
		report(at("file"), "file is none, and there is no other anchor: who edits the log could not be found out")
	}
	if m := a.ConfigMap; m != nil {
		if !slices.ContainsFunc(c.Clusters, func(one Cluster) bool { return one.Name == m.Cluster }) {
			report(at("configMap"), "configMap.cluster is %q; the name of one of clusters is expected", m.Cluster)
		}
		if !namespace.MatchString(m.Namespace) {
			report(at("configMap"), "configMap.namespace is %q; the name of a namespace is expected, best one for nothing else", m.Namespace)
		}
	}
	if len(a.Witnesses) > maxWitnesses {
		report(at("witnesses"), "%d witnesses; %d at most are expected", len(a.Witnesses), maxWitnesses)
	}
	seen := map[string]bool{}
	for i, w := range a.Witnesses {
		if u, err := url.Parse(w.URL); err != nil || u.Scheme != "https" && (u.Scheme != "http" || !loopback(u)) || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			report(at("witnesses", i), "witness url is %q; an https address is expected", w.URL)
		}
		name, _, _ := strings.Cut(w.Key, "+")
		switch {
		case !vkey.MatchString(w.Key):
			report(at("witnesses", i), "witness key is %q; NAME+HASH+KEY is expected, as its operator publishes it", w.Key)
		case seen[name]:
			report(at("witnesses", i), "witness %s stands there twice", name)
		}
		seen[name] = true
	}
}

// minRetention keeps a slip of the pen from emptying the log.
const minRetention = 24 * time.Hour

func (c *Config) checkAudit(report func(at []any, format string, args ...any)) {
	for i, text := range c.Audit.Recipients {
		if !recipient.MatchString(text) {
			// It is not repeated: somebody could have put the private key there.
			report([]any{"audit", "recipients", i}, "this is not a public key of age, age1..., as age-keygen prints it")
		}
	}
	r := c.Audit.Retention
	for key, age := range map[string]time.Duration{"payloads": r.Payloads, "records": r.Records} {
		if age != 0 && age < minRetention {
			report([]any{"audit", "retention", key}, "%s is %s; %s or more is expected, or 0 to keep all", key, age, minRetention)
		}
	}
	if r.Records != 0 && r.Payloads > r.Records {
		report([]any{"audit", "retention"}, "payloads are kept for %s, and records for %s: a payload goes with its record at the latest", r.Payloads, r.Records)
	}
	c.checkAnchors(report)
}

var recipient = regexp.MustCompile(`^age1[02-9ac-hj-np-z]{58}$`)

// AnchorFile is the path of the file for checkpoints, empty where there is none.
func (c *Config) AnchorFile() string {
	if c.Audit.Anchors.File == NoFile {
		return ""
	}
	return c.Audit.Anchors.File
}
