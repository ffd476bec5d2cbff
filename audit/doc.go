// Package audit owns the Record: what one line of the audit log says, what is
// masked before anything is stored, and how a log is written out as JSONL.
//
// It does not store: storage keeps the records behind gate's Store. It does not
// decide what to record: gate does.
package audit
