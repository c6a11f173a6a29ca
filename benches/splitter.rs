//! Throughput of the splitter on a body of realistic events, in chunks as from the network.

use bytes::Bytes;
use divan::counter::BytesCount;
use m365_audit::normalise::split::{Piece, Splitter};

const EVENT: &str = r#"{"CreationTime":"2026-05-01T10:11:12","Id":"0a1b2c3d-0000-1111-2222-33334444abcd","Operation":"FileAccessed","OrganizationId":"7f3c0000-0000-1111-2222-33334444abcd","RecordType":6,"UserKey":"i:0h.f|membership|1003200012345678@live.com","UserType":0,"Version":1,"Workload":"SharePoint","ClientIP":"203.0.113.7","UserId":"anna@contoso.example","ApplicationId":"00000003-0000-0ff1-ce00-000000000000","AuthenticationType":"OAuth","BrowserName":"Edge","BrowserVersion":"124.0.0.0","CorrelationId":"aa11bb22-3000-4000-5000-66667777cccc","EventSource":"SharePoint","IsManagedDevice":false,"ItemType":"File","ListId":"11111111-2222-3333-4444-555555555555","ListItemUniqueId":"66666666-7777-8888-9999-000000000000","Platform":"WinDesktop","Site":"12345678-1234-1234-1234-123456789012","UserAgent":"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36","WebId":"abcdefab-cdef-abcd-efab-cdefabcdefab","DeviceDisplayName":"203.0.113.7","HighPriorityMediaProcessing":false,"ListBaseType":1,"ListServerTemplate":101,"SourceRelativeUrl":"Shared Documents/Quarterly","SourceFileName":"Forecast \"final\".xlsx","SourceFileExtension":"xlsx","SiteUrl":"https://contoso.sharepoint.com/sites/finance/","ObjectId":"https://contoso.sharepoint.com/sites/finance/Shared Documents/Quarterly/Forecast.xlsx","ExtendedProperties":[{"Name":"additionalDetails","Value":"{\"User-Agent\":\"Outlook-iOS/2.0\"}"},{"Name":"extendedAuditEventCategory","Value":"File"}]}"#;

fn main() {
    divan::main();
}

#[divan::bench(args = [16 * 1024, 256 * 1024])]
fn split(bencher: divan::Bencher, chunk_len: usize) {
    let body = Bytes::from(format!("[{}]", vec![EVENT; 4000].join(",")));
    bencher.counter(BytesCount::new(body.len())).bench(|| {
        let mut splitter = Splitter::new();
        let mut rest = body.clone();
        let mut elements = 0usize;
        while !rest.is_empty() {
            splitter.push(rest.split_to(chunk_len.min(rest.len())));
            while let Some(piece) = splitter.next() {
                elements += usize::from(matches!(divan::black_box(piece), Piece::Element { .. }));
            }
        }
        assert_eq!(elements, 4000);
        splitter.finish()
    });
}
