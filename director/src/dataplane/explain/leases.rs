//! Full NAT in an explanation: which local address and port a connection has, or would get if its packet came now.

use director_common::lease::{Leases, Schedules};
use director_common::pin::Pin;
use director_common::pin::table::Trace;
use director_common::schedulers::{Scan, choose};
use director_common::tables::{Address, FlowKey, FlowRecord, Lease, LeaseRecord, Roster, ServiceEntry};

use super::{Live, Lookup, Recorder};
use crate::dataplane::connections::Entry;
use crate::dataplane::maps::Shared;

/// A connection that would begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) flow: FlowKey,
    pub(super) pin: Pin,
    lease: Lease,
}

impl Leases for Live<'_> {
    fn local_address(&self, number: u8) -> Option<&Address> {
        let Shared(address) = self.read(self.maps.locals.get(&u32::from(number), 0))?;
        Some(self.addresses.keep(address))
    }

    /// Takes none: whether it is free.
    fn take(&self, trace: &Trace, _pin: &Pin, _owner: &LeaseRecord) -> bool {
        self.maps.leases.find(trace).is_none()
    }

    fn give_back(&self, _trace: &Trace, _pin: &Pin) {}

    fn lease(&self, trace: &Trace, owner: &mut LeaseRecord) -> Option<Pin> {
        let (pin, found) = self.maps.leases.find(trace)?;
        *owner = found;
        Some(pin)
    }

    fn connection(&self, trace: &Trace, record: &mut FlowRecord) -> Option<Pin> {
        let found = self.maps.pins.traced(trace).or_else(|| self.maps.half_open.traced(trace));
        let (flow, pin, lease) = match (found, *self.begun.borrow()) {
            (Some(Entry { flow, pin, lease, .. }), _) => (flow, pin, lease),
            (None, Some(Begun { flow, pin, lease })) => (flow, pin, lease),
            (None, None) => return None,
        };
        *record = FlowRecord::new(&flow, lease);
        Some(pin)
    }

    /// Remembers it for this explanation. There is room, as in [`Tables::add_pin`](director_common::Tables::add_pin).
    fn begin(&self, flow: &FlowKey, pin: &Pin, lease: Lease) -> bool {
        *self.begun.borrow_mut() = Some(Begun { flow: *flow, pin: *pin, lease });
        true
    }
}

impl Schedules for Live<'_> {
    /// Whom the next connection goes to, whose turn that does not take. Of `twos` one of those that it may draw.
    fn schedule(&self, service: &ServiceEntry) -> u32 {
        let Some(Shared(roster)) = self.read(self.maps.rosters.get(&service.service, 0)) else {
            return Roster::NOBODY;
        };
        let cursor = self.read(self.maps.cursors.get(&service.service, 0)).unwrap_or(0);
        let load = |position: u32| {
            let index = service.real_base.wrapping_add(position);
            (position < service.real_count).then(|| self.maps.loads.get(index).server())
        };
        choose(service.method(), &roster, cursor, [0, 1], &Scan::default(), load).0
    }
}

impl<T: Schedules> Leases for Recorder<'_, T> {
    fn local_address(&self, number: u8) -> Option<&Address> {
        self.tables.local_address(number)
    }
    fn take(&self, trace: &Trace, pin: &Pin, owner: &LeaseRecord) -> bool {
        self.tables.take(trace, pin, owner)
    }
    fn give_back(&self, trace: &Trace, pin: &Pin) {
        self.tables.give_back(trace, pin);
    }
    fn lease(&self, trace: &Trace, owner: &mut LeaseRecord) -> Option<Pin> {
        self.tables.lease(trace, owner)
    }
    fn connection(&self, trace: &Trace, record: &mut FlowRecord) -> Option<Pin> {
        self.tables.connection(trace, record)
    }
    fn begin(&self, flow: &FlowKey, pin: &Pin, lease: Lease) -> bool {
        let granted = self.tables.begin(flow, pin, lease);
        self.note(Lookup::AddPin { key: *flow, pin: *pin, granted });
        granted
    }
}

impl<T: Schedules> Schedules for Recorder<'_, T> {
    fn schedule(&self, service: &ServiceEntry) -> u32 {
        let position = self.tables.schedule(service);
        self.note(Lookup::Schedule { method: service.method(), position });
        position
    }
}
